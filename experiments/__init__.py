"""Scripts that parse flags, build and call; the recipes that they run are in `configs`."""
