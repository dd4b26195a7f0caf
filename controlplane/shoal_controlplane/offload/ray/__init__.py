"""Targets of kind `ray`."""
