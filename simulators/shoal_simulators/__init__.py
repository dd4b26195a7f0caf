"""The real agent on simulated edges: virtual boards, fleets, demo models."""
