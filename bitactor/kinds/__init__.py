"""Steps made of other steps, and small ready-made ones; one file a kind."""
