"""Tells how an optional part of the package is installed."""

import shlex
import sys


def install_command(extra: str) -> str:
    """Return the command that adds an extra to the very environment that runs this."""
    return f"{shlex.quote(sys.executable)} -m pip install 'bitinglip[{extra}]'"
