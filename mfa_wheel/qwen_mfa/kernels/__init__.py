"""The candidate kernels, one file each."""
