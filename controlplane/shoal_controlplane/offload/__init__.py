"""Clouds that take what the edge cannot: targets, what they cost, and when to use them."""
