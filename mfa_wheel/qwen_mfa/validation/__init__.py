"""Whether a kernel computes what MLX does, on this machine.

Not part of the public API: what is here may change in any release.
"""
