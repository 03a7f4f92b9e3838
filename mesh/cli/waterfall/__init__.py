"""A transaction as a waterfall in a terminal: its rows, and how they look."""
