"""Holds embeddings on the wire: requests, jobs, results, and OpenAI's view of them."""
