"""Bounded readers of Mach-O, ELF and PE files.

Any bytes give facts or `Malformed`, in time and memory bounded by the size of the file: counts and
sizes that a file states are never trusted, chains that loop are cut. The general libraries (LIEF,
pyelftools, macholib) do not promise that, so here they are the judges in the tests instead.
"""
