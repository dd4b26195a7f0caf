"""Benchmarks of Shoal beside its peers: they measure and never assert."""
