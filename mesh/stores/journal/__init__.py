"""What a journal keeps, as bytes: frames of pulses, the words they share, and the parts of an archive."""
