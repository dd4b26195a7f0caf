"""The Shoal agent: one device that reports what it can do and runs inference."""
