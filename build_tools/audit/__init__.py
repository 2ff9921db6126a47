"""Whether a wheel or source distribution of this project keeps its contract; statically."""
