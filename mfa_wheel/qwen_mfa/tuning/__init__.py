"""Whether a kernel is faster than MLX's, on this machine.

Not part of the public API: what is here may change in any release.
"""
