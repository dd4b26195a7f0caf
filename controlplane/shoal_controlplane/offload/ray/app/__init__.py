"""What runs on a Ray cluster: a Serve application for one model. Travels there as a package.

Python 3.10 or newer; beside Ray it needs onnxruntime, numpy and msgspec.
"""
