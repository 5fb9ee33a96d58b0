"""The KV cache of conversations, saved to disk and restored."""
