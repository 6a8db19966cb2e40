"""Trains ``demo-text`` on questions about BitingLip and their answers."""
