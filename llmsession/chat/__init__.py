"""Chat: a session and a conversation. Handles each turn, from the user's text to the reply on disk."""
