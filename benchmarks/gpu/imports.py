"""Tells whether importing an engine starts CUDA's driver, which fixes the visible cards."""

import json
import os
import platform
import subprocess
import sys

from benchmarks.gpu.recorder import Recorder
from workers.engines.registry import ENGINES
from workers.environment import worker_environment

_PROGRAM = """
import ctypes, importlib, json, os, sys, time
began = time.perf_counter()
importlib.import_module(sys.argv[1])
seconds = time.perf_counter() - began
try:
    state = ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(ctypes.c_int()))
except OSError:
    state = None
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch
print(json.dumps([seconds, state, torch.cuda.device_count()]))
"""
_NOT_STARTED = 3


def check(record: Recorder) -> None:
    """Import each engine's libraries as a spare does, then hide all cards: none may be seen.

    All processes run at once, each with a worker's environment and, beside it, without the switch
    that has torch ask NVML instead of the driver. Raises AssertionError where cards stay visible
    in a worker's environment.
    """
    own = worker_environment(dict(os.environ), platform.release())
    own.pop("CUDA_VISIBLE_DEVICES", None)
    plain = {key: value for key, value in own.items() if key != "PYTORCH_NVML_BASED_CUDA_CHECK"}
    kinds = ["text"] if record.tiny else [kind for kind in ENGINES if ENGINES[kind].preimport]
    environs = {"": own} if record.tiny else {"": own, ", without the NVML switch": plain}
    runs = {
        (kind, label): _start(ENGINES[kind].preimport[0], environ)
        for kind in kinds
        for label, environ in environs.items()
    }
    wrong = []
    for (kind, label), process in runs.items():
        output, errors = process.communicate()
        if process.returncode:
            raise AssertionError(errors[-2000:])
        seconds, state, cards = json.loads(output.splitlines()[-1])
        started = "no driver" if state is None else "no" if state == _NOT_STARTED else "yes"
        note = f"{cards} cards seen, imported in {seconds:.1f} s"
        record.figure(f"{kind}{label}: driver started by imports", started, note=note)
        if cards and not label:
            wrong.append(kind)
    assert not wrong, f"workers of {wrong} would not see the cards that they are given"


def _start(module: str, environ: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, module],
        env={**environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
