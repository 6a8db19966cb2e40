"""Bases that tell what an event is about: to ask for one is quicker than for a union of types.

The unions of ``workers.protocol`` are what is decoded, and a test holds both to each other.
"""

import msgspec


class OfJob(msgspec.Struct, frozen=True):
    """Marks an event of a job; all others are about the worker itself."""


class Ends(OfJob, frozen=True):
    """Marks the one event that ends a job."""


class Succeeds(Ends, frozen=True):
    """Marks the end of a job that has its answer."""
