"""The library that the wheel carries: its declarations, how it is opened, MLX's memory for it."""
