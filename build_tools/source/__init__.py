"""The pinned upstream source: lock, fetch, overlay, new pins."""
