"""Speak to one server: requests out, events in. Knows no process and no file."""
