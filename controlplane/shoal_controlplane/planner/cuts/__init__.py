"""Cuts: an ONNX graph as segments with costs, and the sub-models between chosen cuts."""
