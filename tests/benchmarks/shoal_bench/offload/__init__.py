"""The real router, admission and saturation in a simulated step of load, with a cloud beside."""
