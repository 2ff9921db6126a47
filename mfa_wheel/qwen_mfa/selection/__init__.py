"""Which kernel runs: candidates, what the user forces, what was decided here before.

Not part of the public API: what is here may change in any release.
"""
