"""Ingress: stimuli that come in from outside."""
