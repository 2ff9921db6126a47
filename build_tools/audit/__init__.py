"""Audit any wheel, of any platform, on any OS, without executing anything from it."""
