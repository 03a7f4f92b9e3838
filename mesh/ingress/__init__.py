"""How stimuli come in from outside."""
