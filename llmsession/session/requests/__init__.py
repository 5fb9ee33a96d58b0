"""The request for each kind of call, and the queue in which calls wait for a slot."""
