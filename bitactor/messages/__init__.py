"""Messages and pulses, and their bytes: ids, signals, outcomes, pulses."""
