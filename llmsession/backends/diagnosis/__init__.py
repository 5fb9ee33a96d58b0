"""Why an engine did not start, or ended: one sentence with the cause and the next step."""
