"""Runs a call of a pipeline that halts after each step.

The library's call runs from its first line to its image. Here it runs on a greenlet of its own,
whose step callback hands control back: so calls can be interleaved, and ended between two steps,
without a copy of any pipeline's loop. All of them share the weights; what a call changes
(scheduler, attributes of the pipeline) is its own.
"""

import time
from dataclasses import dataclass
from typing import Any

import greenlet

from workers.engines.image.request import ImageSample
from workers.faults import classify


@dataclass(slots=True, frozen=True)
class Step:
    """A call has made ``number`` of ``steps``; its latents are as the pipeline keeps them."""

    number: int
    steps: int
    latents: Any


@dataclass(slots=True, frozen=True)
class Images:
    """A call has ended with these images."""

    pixels: Any  #: float32 of shape (images, height, width, 3), from 0 to 1
    filtered: list[bool]  #: those that the safety checker made black


class PipelineCall:
    """Computes images of the same shape in one call of ``pipe``, which belongs to this call."""

    def __init__(self, pipe: Any, arguments: dict[str, Any], samples: list[ImageSample]) -> None:
        self.pipe = pipe
        self.samples = samples
        self.seconds_per_image = 0.0  #: of computing; the call that had least goes next
        self.steps_done = 0
        self._arguments = arguments
        self._call = greenlet.greenlet(self._work)

    @property
    def wanted(self) -> bool:
        return any(sample.wanted for sample in self.samples)

    @property
    def job(self) -> Any:
        return self.samples[0].request.job

    def advance(self) -> Step | Images:
        """Compute the next step, or the images after the last one. Raises what the call raises."""
        began = time.monotonic()
        self._call.parent = greenlet.getcurrent()
        try:
            outcome: Step | Images = self._call.switch()
        except Exception as error:
            fault = classify(error)
            if fault is None or not fault.ends:  # else nothing may touch the card again
                self.pipe.maybe_free_model_hooks()
            raise
        finally:
            self.seconds_per_image += (time.monotonic() - began) / len(self.samples)
        if isinstance(outcome, Step):
            self.steps_done = outcome.number
            for sample in self.samples:
                sample.step = outcome.number
        return outcome

    def end(self) -> None:
        """End the call where it stands; what it held is free afterwards."""
        self._call.throw()
        # What a finished call does itself: parts go back to host memory, caches are emptied.
        self.pipe.maybe_free_model_hooks()

    def _work(self) -> Images:
        output = self.pipe(**self._arguments, callback_on_step_end=self._halt)
        flags = getattr(output, "nsfw_content_detected", None)
        return Images(output.images, list(flags) if flags else [False] * len(self.samples))

    def _halt(self, pipe: Any, number: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        step = Step(number + 1, int(pipe.num_timesteps), tensors.get("latents"))
        assert self._call.parent is not None
        self._call.parent.switch(step)
        return {}
