"""Boards: detection, capabilities and telemetry."""
