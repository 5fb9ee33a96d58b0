"""What a model reads: prompts in which no text becomes control."""
