"""The native libraries, portable and Metal, and what their builds are checked with."""
