"""Copies of models' files on nodes that do not share a file system with their gateways."""
