"""The shoal command: a module a noun."""
