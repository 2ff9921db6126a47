"""Releases: versions, the files of a release, and a rehearsal of what installers then choose."""
