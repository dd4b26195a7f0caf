"""Targets: places in clouds that take what the devices cannot."""
