"""How tiny-chat, the demonstration model, is made and measured; `scripts/train_tiny_chat.py` is its command."""
