"""Model files from Hugging Face: found in its cache, or downloaded by a child process."""
