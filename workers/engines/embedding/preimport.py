"""Imports the embedding engine's libraries, which takes seconds; a spare worker does."""

import transformers.models.bert.modeling_bert  # noqa: F401

import workers.engines.embedding.engine  # noqa: F401
