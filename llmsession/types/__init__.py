"""Values that everyone speaks: messages, completions, errors, events, sampling. Imports nothing else of the package."""
