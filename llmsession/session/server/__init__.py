"""The server of a session: one that it starts, watches and restarts, or a remote one that it attaches to."""
