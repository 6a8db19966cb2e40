"""Starts the ``bitinglip`` command, by ``python -m cli`` and by the installed script.

Imports take a tenth of a second. Ctrl-C in it ends the process as the signal does, without a
traceback; later, commands see KeyboardInterrupt.
"""

import signal
import sys

_INTERRUPTED = 130  #: the exit code that shells give what SIGINT has ended
_handler = signal.getsignal(signal.SIGINT)
if _handler is signal.default_int_handler:  # not where the parent has it ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from cli.main import app  # noqa: E402  the signal is seen to first


def main() -> None:
    """Run the command that the arguments name."""
    try:
        signal.signal(signal.SIGINT, _handler)
        app(prog_name="bitinglip")
    except KeyboardInterrupt:  # before a command runs, or after
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
