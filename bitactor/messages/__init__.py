"""What is sent and what is kept, and their bytes: ids, signals, outcomes, pulses."""
