"""Runs embeddings: transformers' encoders and decoders in sentence-transformers' layout."""
