"""Releases of llama.cpp: fetched, verified, unpacked and chosen."""
