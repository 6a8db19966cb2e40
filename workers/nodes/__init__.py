"""Runs workers on other machines: an agent on each, which starts them, and the gateway's side."""
