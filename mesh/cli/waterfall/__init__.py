"""A transaction as a waterfall in a terminal: what its rows are, and how they look."""
