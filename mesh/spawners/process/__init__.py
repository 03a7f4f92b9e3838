"""Hops in worker processes: started, fed, watched, killed, replaced."""
