"""Declares the errors of Redis."""


class RedisAway(Exception):
    """Redis does not answer in time, or cannot do what it is asked; the message says why."""
