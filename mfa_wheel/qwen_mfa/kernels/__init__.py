"""The candidate kernels, one file each.

Not part of the public API: what is here may change in any release.
"""
