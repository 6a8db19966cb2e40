"""Keeps limits, places and quotas of keys in the Redis that gateways share."""
