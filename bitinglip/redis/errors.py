"""Declares what the users of Redis have to expect."""


class RedisAway(Exception):
    """Redis does not answer in time, or cannot do what it is asked; the message says why."""
