"""Pulses as OpenTelemetry spans: folded, encoded, sent."""
