"""What one open session owns: its options, its server, its requests and its saved KV cache."""
