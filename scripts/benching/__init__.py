"""Measurements of scripts/bench that fill a file of their own."""
