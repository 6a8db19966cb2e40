"""Sets torch up for every part that computes in its own process."""

import os

import torch

from benchmarks.gpu.recorder import Recorder


def prepare_torch(record: Recorder) -> int:
    """Switch gradients off, and choose the number of CPU threads, which is returned.

    The rehearsal takes one: threads that wait for each other are slow where other programs run.
    """
    threads = 1 if record.tiny else os.cpu_count() or 1
    torch.set_grad_enabled(False)
    torch.set_num_threads(threads)
    return threads
