"""Declarations: steps, their options, resources and backoff; and what a step may ask and answer while it runs."""
