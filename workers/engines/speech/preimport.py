"""Imported by a worker that will speak: the libraries whose import costs seconds."""

import transformers.models.bark.modeling_bark
import transformers.models.encodec.modeling_encodec  # noqa: F401

import workers.engines.speech.engine  # noqa: F401
