"""Export of a plan, and of what happened to it: as plain data, description, picture, counts, and pulses for people."""
