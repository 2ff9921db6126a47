"""What stands between a call and a kernel: derivatives, tracing, padding.

Not part of the public API: what is here may change in any release.
"""
