"""Keep one child process alive, and never longer than its owner. Knows no word about language models."""
