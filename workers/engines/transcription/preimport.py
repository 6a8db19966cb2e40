"""Imported by a worker that will listen: the libraries whose import costs seconds."""

import transformers.models.whisper.modeling_whisper  # noqa: F401

import workers.engines.transcription.engine  # noqa: F401
