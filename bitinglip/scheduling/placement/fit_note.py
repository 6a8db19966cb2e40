"""Says in a few words whether a model will fit in memory: what it needs beside what is there."""

from bitinglip.scheduling.placement.fit import FitAnswer
from model_store.sizes import size_text


def fit_note(answer: FitAnswer) -> str:
    """Return the text. It names no other model: the key that downloads one may not see all."""
    formats = ", ".join(f"{size_text(count)} as {name}" for name, count in answer.by_dtype.items())
    devices = ", ".join(
        f"{each.id} has {size_text(max(0, each.free_bytes))} of {size_text(each.memory_bytes)} free"
        for each in answer.devices
    )
    return f"Memory: {_verdict(answer)} It takes {formats}; {devices}."


def _verdict(answer: FitAnswer) -> str:
    if (placement := answer.placement) is not None:
        after = " once other models are unloaded" if not placement.is_free else ""
        needs = f" and takes {size_text(answer.need.bytes)} there" if answer.need else ""
        return f"it fits on {placement.device}{after}{needs}."
    if not answer.suggestions:
        return answer.message
    ways = answer.suggestions[0].settings.items()
    settings = " and ".join(f"{name} {value}" for name, value in ways)
    return f"{answer.message} With {settings} in models.{answer.model} it would fit."
