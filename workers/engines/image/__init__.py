"""The image engine: diffusers' pipelines, stepwise, batched and interleaved."""
