"""BitingLip: a private inference API for text, images and speech on one workstation."""

__version__ = "0.1.0"
