"""What changed in the fleet, as a resumable stream."""
