"""Models: versions, artifacts, cards."""
