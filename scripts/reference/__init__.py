"""Writes docs/reference/ from the code: settings, commands, routes, errors and metrics."""
