"""Turns a launch into a ready Endpoint: finds an engine, starts it, and finds out which features it has."""
