"""Model files: references, downloads, headers, encodings and the registry."""
