"""Explains why an engine did not start, or exited: one sentence with the cause and the next step."""
