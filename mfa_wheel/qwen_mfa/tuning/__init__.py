"""Whether a kernel is faster than MLX's, on this machine."""
