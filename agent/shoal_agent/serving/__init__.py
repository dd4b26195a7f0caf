"""Resident models, deadline queue with batching, compute."""
