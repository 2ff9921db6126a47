"""Attacks that take minutes: `make test-faults`. What takes seconds lies beside its module."""
