"""Artifacts by digest and the way from goal to reported."""
