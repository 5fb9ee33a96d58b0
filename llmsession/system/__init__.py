"""Files, locks, threads and folders. Knows no model and no child process."""
