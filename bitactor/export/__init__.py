"""A plan, and what happened to it, as something else: plain data, a description, a picture, counts, pulses for
people."""
