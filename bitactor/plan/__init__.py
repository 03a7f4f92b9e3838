"""What a workflow compiles to: a validated, indexed graph of steps, and the port of a container."""
