"""Imports the libraries of the speech engine, which takes seconds; a spare worker imports this."""

import transformers.models.bark.modeling_bark
import transformers.models.encodec.modeling_encodec  # noqa: F401

import workers.engines.speech.engine  # noqa: F401
