"""Plans: models cut into stages over several devices."""
