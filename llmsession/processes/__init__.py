"""Keeps one child process alive, and never longer than its owner. Knows nothing about language models."""
