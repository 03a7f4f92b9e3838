"""Limits and timers: how many hops at once, who is next, and when."""
