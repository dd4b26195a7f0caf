"""Who this device is."""
