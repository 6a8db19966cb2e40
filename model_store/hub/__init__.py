"""Brings models from a hub: what is there, which files are wanted, and how they come."""
