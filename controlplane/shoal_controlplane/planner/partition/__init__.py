"""Partition: which device computes which segments of a model. Pure."""
