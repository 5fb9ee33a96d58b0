"""Releases of llama.cpp: downloads, verifies, unpacks and selects them."""
