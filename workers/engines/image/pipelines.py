"""Makes a pipeline for each call out of the loaded one, with which it shares its weights.

A pipeline keeps the state of its call in its scheduler and its own attributes, so two calls may
not share either. What is heavy (models, tokenizers) is shared.
"""

import copy
import inspect
from typing import Any

import diffusers
import torch

from workers.engines.base import Refused
from workers.engines.image import long_prompts
from workers.engines.image.loading import LoadedPipeline
from workers.engines.image.prompt_cache import PromptCache
from workers.engines.image.request import ImageSample
from workers.engines.image.schedulers import Schedulers
from workers.protocol import ImageJob

_CLASSIC_GUIDANCE = 7.5  #: of classic pipelines, if the request names none
_DEFAULT_SEQUENCE = 512
_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")


class Pipelines:
    """Knows what one loaded pipeline can do, and prepares its calls."""

    def __init__(self, loaded: LoadedPipeline) -> None:
        self.device = loaded.device
        self._pipes = {"text": loaded.pipe}
        self.schedulers = Schedulers(loaded.pipe.scheduler)
        self.prompt_cache = PromptCache()
        self.chunks_prompts = long_prompts.can_chunk(loaded.pipe)

    @property
    def base(self) -> Any:
        return self._pipes["text"]

    @property
    def side_multiple(self) -> int:
        """Return the pixels that width and height are multiples of; some pipelines round them."""
        factor = int(getattr(self.base, "vae_scale_factor", 8))
        packs = hasattr(self.base, "_pack_latents") or "ZImage" in type(self.base).__name__
        return 2 * factor if packs else factor

    @property
    def tokenizers(self) -> list[Any]:
        found = [getattr(self.base, name, None) for name in _TOKENIZERS]
        return [each for each in found if each is not None]

    @property
    def longest_prompt(self) -> int:
        """Return the tokens that the longest encoder reads; CLIP's beside it see the start only."""
        sequence = self._parameters("text").get("max_sequence_length")
        limit = sequence.default if sequence is not None else _DEFAULT_SEQUENCE
        lengths = [min(each.model_max_length, limit) for each in self.tokenizers]
        return max(lengths, default=limit)

    def guidance(self, job: ImageJob) -> float | None:
        """Return the guidance that a job runs with; None if the pipeline has none."""
        parameter = self._parameters("text").get("guidance_scale")
        if parameter is None:
            return None
        if job.guidance_scale is not None:
            return job.guidance_scale
        if type(self.base).__name__.startswith("StableDiffusion"):
            return _CLASSIC_GUIDANCE
        own = parameter.default
        return float(own) if isinstance(own, int | float) else None

    def check(self, job: ImageJob) -> None:
        """Raise Refused if a job asks for something that this pipeline does not do."""
        parameters = self._parameters("text")
        if job.guidance_scale is not None and "guidance_scale" not in parameters:
            raise _unsupported("guidance_scale")
        if job.negative_prompt is not None and not self._takes_negative():
            raise _unsupported("negative_prompt")
        if job.scheduler is not None:
            self.schedulers.check(job.scheduler)
        multiple = self.side_multiple
        for name in ("width", "height"):
            if getattr(job, name) % multiple:
                raise Refused(
                    "INVALID_REQUEST",
                    f"'{name}' must be a multiple of {multiple} for this model.",
                    param=name,
                    details={"multiple": multiple},
                )
        if job.image is not None:
            self._check_mode(_mode(job))
        self.schedulers.check_steps(job.scheduler, self._scheduled_steps(job))

    def prepare(self, samples: list[ImageSample]) -> tuple[Any, dict[str, Any]]:
        """Return a pipeline for one call of these samples, and the arguments of the call."""
        request = samples[0].request
        job, mode = request.job, _mode(request.job)
        pipe = copy.copy(self._pipe(mode))
        pipe.scheduler = self.schedulers.fresh(job.scheduler)
        if self.chunks_prompts:
            long_prompts.attach(pipe, self.tokenizers, self.longest_prompt)
        self.prompt_cache.attach(pipe, job.adapters)
        arguments: dict[str, Any] = {
            "prompt": [sample.request.job.prompt for sample in samples],
            "num_inference_steps": self._scheduled_steps(job),
            "generator": [torch.Generator().manual_seed(sample.seed) for sample in samples],
            "output_type": "np",
            "callback_on_step_end_tensor_inputs": ["latents"],
        }
        if job.negative_prompt is not None:
            arguments["negative_prompt"] = [s.request.job.negative_prompt for s in samples]
        guidance = self.guidance(job)
        if guidance is not None:
            arguments["guidance_scale"] = guidance
        parameters = self._parameters(mode)
        if "width" in parameters:
            arguments |= {"width": job.width, "height": job.height}
        if request.sources is not None:
            arguments["image"] = request.sources.image
            if request.sources.mask is not None:
                arguments["mask_image"] = request.sources.mask
            if job.strength is not None:
                arguments["strength"] = job.strength
        return pipe, arguments

    def _scheduled_steps(self, job: ImageJob) -> int:
        """Return the steps to schedule, so that one at least is made.

        From an image a pipeline makes only the last of them: the share that ``strength`` says,
        which may round to none. Raises Refused for a strength at which no step can be made.
        """
        mode = _mode(job)
        parameter = self._parameters(mode).get("strength")
        if job.image is None or parameter is None:
            return job.steps
        strength = float(parameter.default if job.strength is None else job.strength)
        if job.steps * strength >= 1 or self._makes_steps(job, mode, strength):
            return job.steps
        most = int(self.schedulers.fresh(job.scheduler).config.get("num_train_timesteps", 1000))
        if most * strength < 1:
            raise Refused(
                "INVALID_REQUEST",
                f"'strength' must be {1 / most:g} at least, or this model makes no step.",
                param="strength",
            )
        return next(steps for steps in range(1, most + 1) if steps * strength >= 1)

    def _makes_steps(self, job: ImageJob, mode: str, strength: float) -> bool:
        """Tell whether this pipeline makes any step of these; kinds of them round differently."""
        pipe = copy.copy(self._pipe(mode))
        pipe.scheduler = self.schedulers.fresh(job.scheduler)
        pipe.scheduler.timesteps = torch.arange(job.steps)  # only counted here
        _, made = pipe.get_timesteps(job.steps, strength, self.device)
        return bool(made > 0)

    def _takes_negative(self) -> bool:
        """Return whether a negative prompt has an effect.

        Distilled pipelines need a second guidance for it, and distilled U-Nets, to which guidance
        is one more input, are never run with it.
        """
        parameters = self._parameters("text")
        unet = getattr(self._pipe("text"), "unet", None)
        if unet is not None and getattr(unet.config, "time_cond_proj_dim", None) is not None:
            return False
        return "negative_prompt" in parameters and "true_cfg_scale" not in parameters

    def _parameters(self, mode: str) -> "dict[str, inspect.Parameter]":
        return dict(inspect.signature(type(self._pipe(mode)).__call__).parameters)

    def _check_mode(self, mode: str) -> None:
        try:
            self._pipe(mode)
        except (ValueError, ImportError, TypeError) as error:
            raise _unsupported("image" if mode == "image" else "mask") from error

    def _pipe(self, mode: str) -> Any:
        """Return the pipeline that makes images from text, from an image, or inside a mask."""
        if mode not in self._pipes:
            kinds = {
                "image": diffusers.AutoPipelineForImage2Image,
                "mask": diffusers.AutoPipelineForInpainting,
            }
            pipe = kinds[mode].from_pipe(self.base)
            pipe.set_progress_bar_config(disable=True)
            self._pipes[mode] = pipe
        return self._pipes[mode]


def _mode(job: ImageJob) -> str:
    if job.image is None:
        return "text"
    return "image" if job.mask is None else "mask"


def _unsupported(name: str) -> Refused:
    return Refused(
        "UNSUPPORTED_PARAMETER", f"'{name}' is not supported for this model.", param=name
    )
