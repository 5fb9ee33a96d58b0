"""What engines have evaluated of conversations, kept on disk."""
