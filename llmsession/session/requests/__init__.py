"""The request for each kind of call, and who goes next."""
