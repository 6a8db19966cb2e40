"""Bark, a speech model of three transformers and a codec."""
