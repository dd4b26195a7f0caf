"""systemd, doctor and status."""
