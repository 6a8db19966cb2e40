"""Connects gateways through Redis or Valkey, by setting."""
