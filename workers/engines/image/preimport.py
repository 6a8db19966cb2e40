"""Imports the libraries of the image engine, which takes seconds; a spare worker imports this."""

import diffusers
import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion
import diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl  # noqa: F401
import torch  # noqa: F401

import workers.engines.image.engine  # noqa: F401
