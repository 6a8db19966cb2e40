"""Imported by a spare worker: the libraries whose import costs seconds, nothing of a model."""

import torch  # noqa: F401
import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama  # noqa: F401

import workers.engines.text.engine  # noqa: F401
