"""What a release may be refused for."""

from __future__ import annotations

from build_tools.support.errors import BuildToolsError


class ReleaseError(BuildToolsError):
    """The release cannot be made as asked; nothing was written."""
