"""Imports the transcription engine's libraries, which takes seconds; a spare worker does."""

import transformers.models.whisper.modeling_whisper  # noqa: F401

import workers.engines.transcription.engine  # noqa: F401
