"""Says what becomes of jobs whose worker died: their errors, and the deaths that are excused."""

from bitinglip import errors
from bitinglip.scheduling.dispatch.model_queue import InFlightJob
from bitinglip.scheduling.models.deaths import Death


def excuse(entry: InFlightJob) -> None:
    """Take back a death that turned out to be the device's."""
    entry.deaths = max(0, entry.deaths - 1)
    entry.excused += 1


def gave_up(cause: str, death: Death) -> errors.BitingLipError:
    """Return the error of a request that is not run again though it is not to blame."""
    if death.blame != "memory":
        return crashed(cause, quarantined=False)
    return errors.OutOfMemory(f"The worker {cause} each time that it ran this request.")


def crashed(cause: str, *, quarantined: bool) -> errors.WorkerCrashed:
    return errors.WorkerCrashed(
        f"The worker {cause} while it ran this request.", details={"quarantined": quarantined}
    )
