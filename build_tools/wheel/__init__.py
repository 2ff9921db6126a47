"""The wheel: setuptools' commands, canonical bytes, SBOM."""
