"""Makes schedulers by their usual names; each call gets its own, since they hold state."""

from typing import Any

import diffusers

from workers.engines.base import Refused

#: short name -> class, and settings beside the model's own configuration
_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_singlestep": ("DPMSolverSinglestepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
_WARM_UP = 4  #: steps of a pseudo numerical method that begins with Runge-Kutta
_NEED_SCIPY = frozenset({"LMSDiscreteScheduler"})


class Schedulers:
    """Knows the schedulers that one pipeline can use."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self._classes = {type(own).__name__: type(own)}
        self._classes |= {each.__name__: each for each in own.compatibles}
        for name in _NEED_SCIPY - {type(own).__name__}:
            self._classes.pop(name, None)

    @property
    def names(self) -> list[str]:
        return sorted(name for name, (kind, _) in _NAMES.items() if kind in self._classes)

    @property
    def own_name(self) -> str:
        """Return the short name of the model's own scheduler, else its class."""
        mine = type(self._own).__name__
        return next((name for name, (kind, _) in _NAMES.items() if kind == mine), mine)

    def check(self, name: str) -> None:
        """Raise Refused, with the known names, for a name that is not among them."""
        if name in self.names or name in self._classes:
            return
        raise Refused(
            "INVALID_REQUEST",
            f"This model has no scheduler of that name; it has {', '.join(self.names)}.",
            param="scheduler",
            details={"schedulers": self.names},
        )

    def check_steps(self, name: str | None, steps: int) -> None:
        """Raise Refused for fewer steps than the scheduler warms up with."""
        warm_up = _WARM_UP if self.fresh(name).config.get("skip_prk_steps") is False else 1
        if steps < warm_up:
            raise Refused(
                "INVALID_REQUEST",
                f"'steps' must be {warm_up} at least with this scheduler.",
                param="steps",
            )

    def fresh(self, name: str | None) -> Any:
        """Make a scheduler for one call; None names the model's own class."""
        if name is None:
            return type(self._own).from_config(self._own.config)
        kind, settings = _NAMES.get(name, (name, {}))
        scheduler = getattr(diffusers, kind)
        return scheduler.from_config(self._own.config, **settings)
