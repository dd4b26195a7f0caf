"""What all routes share: problems, pages, conditional updates, idempotent creations."""
