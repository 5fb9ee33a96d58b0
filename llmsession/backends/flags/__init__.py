"""Command-line flags: from a Launch, for the build that gets them."""
