"""The quarantine refuses requests that have ended workers."""

import hashlib
from collections import OrderedDict
from collections.abc import Collection

import msgspec

from bitinglip.scheduling.job import Job

_MOST = 1024
_encoder = msgspec.msgpack.Encoder(order="deterministic")


class Quarantine:
    """Holds fingerprints of requests by model, and drops the oldest first."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def add(self, job: Job) -> None:
        self._held[job.model, fingerprint(job)] = None
        if len(self._held) > _MOST:
            self._held.popitem(last=False)

    def __contains__(self, job: Job) -> bool:
        return bool(self._held) and (job.model, fingerprint(job)) in self._held

    def remove(self, job: Job) -> None:
        """Let one request out; no harm if it is not held."""
        self._held.pop((job.model, fingerprint(job)), None)

    def release(self, models: Collection[str]) -> None:
        """Release the requests of models that an operator loads again."""
        for entry in [entry for entry in self._held if entry[0] in models]:
            del self._held[entry]


def fingerprint(job: Job) -> bytes:
    """Return a digest of the work alone, the same for all callers and forms of answer."""
    message = msgspec.structs.replace(job.work, id="", stream=False)
    return hashlib.blake2b(_encoder.encode(message), digest_size=16).digest()
