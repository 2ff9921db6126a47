"""Build twice and compare; rebuild from a manifest."""
