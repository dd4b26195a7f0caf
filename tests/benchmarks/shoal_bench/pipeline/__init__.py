"""The benchmark `pipeline`."""
