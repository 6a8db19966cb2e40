"""Embeddings: requests, jobs, results, and OpenAI's view of them."""
