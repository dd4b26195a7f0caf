"""Requests a second and latency of the whole way, beside other model servers."""
