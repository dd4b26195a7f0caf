"""Placement: pure functions over a frozen snapshot."""
