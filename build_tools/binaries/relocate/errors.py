"""What relocation refuses."""

from __future__ import annotations

from build_tools.support.errors import BuildToolsError


class RelocationError(BuildToolsError):
    """The library cannot be made fit for a wheel; the message says what to change in its build."""
