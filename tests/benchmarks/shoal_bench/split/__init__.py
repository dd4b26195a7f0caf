"""Models cut into stages, which composed must equal the whole."""
