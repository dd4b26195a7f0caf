"""Targets of kind `tpu`."""
