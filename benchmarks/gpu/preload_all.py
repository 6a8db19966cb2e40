"""Imports a worker's environment and libraries, in the process that parts are forked from.

The environment comes first, since the libraries read it when they are imported.
"""

import importlib
import os
import platform

from workers.engines.registry import ENGINES
from workers.environment import worker_environment

os.environ.update(worker_environment(dict(os.environ), platform.release()))
os.environ["PYTHONUNBUFFERED"] = "1"
for _info in ENGINES.values():
    for _module in _info.preimport:
        importlib.import_module(_module)
