"""Targets of kind `kserve`."""
