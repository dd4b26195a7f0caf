"""The compiled room: what a device compiled of a model, for its siblings to download."""
