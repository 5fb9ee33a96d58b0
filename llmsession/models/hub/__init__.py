"""Model files from Hugging Face: looked up in its cache, or downloaded in a process of its own."""
