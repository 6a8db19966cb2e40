"""The embedding engine: transformers' encoders and decoders in sentence-transformers' layout."""
