"""Models that other servers answer for, through an OpenAI-compatible API."""
