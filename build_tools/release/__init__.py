"""Releases: version, changelog, the files of a release, and whether it is ready."""
