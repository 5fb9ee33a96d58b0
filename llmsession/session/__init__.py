"""Session: one open session with its options, its server, its requests and its saved KV cache."""
