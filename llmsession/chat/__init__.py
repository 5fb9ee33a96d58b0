"""A session and a conversation: one turn, from the user's text to the reply on disk."""
