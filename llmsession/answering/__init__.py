"""One turn of a chat, from the words of the user to the reply on disk."""
