"""Imports the libraries of the text engine, which takes seconds; a spare worker imports this."""

import torch  # noqa: F401
import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama  # noqa: F401

import workers.engines.text.engine  # noqa: F401
