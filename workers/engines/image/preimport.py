"""Imported by a worker that will draw: the libraries whose import costs seconds."""

import diffusers
import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion
import diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl  # noqa: F401
import torch  # noqa: F401

import workers.engines.image.engine  # noqa: F401
