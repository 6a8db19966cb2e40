"""BitingLip serves a private inference API for text, images and speech from one workstation."""

__version__ = "0.1.0"
