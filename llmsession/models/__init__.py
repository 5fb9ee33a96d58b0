"""What to run: model files, what is in them, and how a conversation is written for them."""
