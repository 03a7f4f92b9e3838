"""Pulses as OpenTelemetry spans: folding, encoding and sending them."""
