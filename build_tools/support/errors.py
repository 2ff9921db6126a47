"""The exceptions of the build tools. Each message says what is wrong and what to do next."""

from __future__ import annotations


class BuildToolsError(Exception):
    """Base of every error that the build tools raise on purpose."""


class ToolError(BuildToolsError):
    """A program that we started failed, was missing, or ran out of time."""


class UsageError(BuildToolsError):
    """The command line asks for something that cannot be done."""


class LockError(BuildToolsError):
    """The lock file is missing, malformed, or asks for what cannot be."""


class SourceError(BuildToolsError):
    """The source could not be fetched, or is not what the lock says."""


class OverlayError(BuildToolsError):
    """A repair does not fit the source that it is laid over."""


class ToolchainError(BuildToolsError):
    """A compiler, an SDK or an operating system version that the build needs is missing."""


class BuildError(BuildToolsError):
    """The native build failed, or its result is not what it must be."""


class ShaderError(BuildToolsError):
    """A shader pack, or a record of its sources, is damaged or does not cover what it must."""


class RelocationError(BuildToolsError):
    """A library cannot be made fit for a wheel; the message says what to change in its build."""


class ReleaseError(BuildToolsError):
    """The release cannot be made as asked; nothing was written."""
