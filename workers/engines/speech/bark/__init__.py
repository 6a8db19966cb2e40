"""Bark is a speech model of three transformers and a codec."""
