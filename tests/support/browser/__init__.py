"""Drives a headless Chromium by its DevTools protocol."""
