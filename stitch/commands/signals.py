"""SIGTERM as Ctrl-C: a batch system or a service manager that ends a run gives it the chance to say how to go on."""

import signal
from types import FrameType

from stitch.errors import Terminated


def stop_on_sigterm() -> None:
    """From now on SIGTERM raises `Terminated`; a second one ends the process at once. Ignored signals stay ignored."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Terminated
