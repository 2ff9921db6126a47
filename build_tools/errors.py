"""The exceptions of the build tools. Each message says what is wrong and what to do next."""

from __future__ import annotations


class BuildToolsError(Exception):
    """Base of every error that the build tools raise on purpose."""


class ToolError(BuildToolsError):
    """A program that we started failed, was missing, or ran out of time."""


class UsageError(BuildToolsError):
    """The command line asks for something that cannot be done."""
