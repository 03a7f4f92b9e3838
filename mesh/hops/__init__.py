"""Running one hop, from its signal to its reply: the actor, resources and policies before and around the function,
compensation."""
