"""Runs jobs of upstream models: other servers answer for them, through an OpenAI-compatible API."""
