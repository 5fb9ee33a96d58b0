"""The server of a session: planned, started, watched and restarted, or attached to."""
