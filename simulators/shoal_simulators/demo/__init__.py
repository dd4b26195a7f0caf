"""The demonstration's real models and pictures, taken from public Python packages."""
