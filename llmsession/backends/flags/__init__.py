"""Translates a Launch into command-line flags for a given build of an engine."""
