"""The image engine runs diffusers' pipelines stepwise, batched and interleaved."""
