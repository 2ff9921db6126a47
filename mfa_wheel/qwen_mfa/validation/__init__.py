"""Whether a kernel computes what MLX does, on this machine."""
