"""Read and relocate the native libraries of our wheels, without running or trusting them.

Any bytes give facts or `Malformed`, in time and memory bounded by the size of the file. ELF is
read by pyelftools, on a stream that ends what loops. Mach-O has a reader of its own, because the
relocation edits what it reads, on machines without Apple's tools.
"""
