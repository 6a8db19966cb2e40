"""What gateways that share a Redis keep there of the limits, places and quotas of keys."""
