"""Show where the time of one step goes: kernels, launches and the gaps between them."""

import statistics
from collections import Counter
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.recorder import Recorder

_STEPS = 5
_SHOWN = 6
_NAME = 60  #: characters of a kernel's name


def record_step(record: Recorder, label: str, step: Callable[[], float]) -> None:
    """Profile ``step``, which gives its own seconds, and record kernels, gaps and the largest.

    On a CPU its operations stand for kernels.
    """
    median = statistics.median(step() for _ in range(_STEPS))
    cuda = record.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(_STEPS):
            step()
    wanted = "CUDA" if cuda else "CPU"
    spent: Counter[str] = Counter()
    kernels = launches = 0
    for event in profiler.events():
        launches += event.name.startswith(("cudaLaunchKernel", "cuLaunchKernel"))
        if event.device_type.name == wanted:
            kernels += 1
            spent[event.name] += event.self_device_time_total if cuda else event.self_cpu_time_total
    busy = sum(spent.values()) / _STEPS / 1000
    what = "kernels" if cuda else "operations"
    record.figure(f"{label}: {what} of a step", kernels / _STEPS, expected="560-570 for 8b")
    record.figure(f"{label}: launches of a step", launches / _STEPS)
    note = f"of {1000 * median:.2f} ms without the profiler"
    record.figure(f"{label}: time in {what}", busy, "ms", note=note)
    record.figure(f"{label}: gaps", 1000 * median - busy, "ms", note="the card waits for the host")
    for name, microseconds in spent.most_common(_SHOWN):
        share = f"{100 * microseconds / 1000 / _STEPS / busy:.0f} %"
        record.figure(f"{label}: {name[:_NAME]}", microseconds / 1000 / _STEPS, "ms", note=share)
