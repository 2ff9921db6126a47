"""The library that the wheel carries: its declarations, how it is opened, MLX's memory for it.

Not part of the public API: what is here may change in any release.
"""
