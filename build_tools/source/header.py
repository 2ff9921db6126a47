"""The functions of a C header, read without a compiler."""

from __future__ import annotations

import re

_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)|//[^\n]*", re.DOTALL)
_FUNCTION = re.compile(r"\b(mfa_\w+)\s*\(")


def declared(header: str) -> list[str]:
    """Return the functions that a C header declares, sorted."""
    return sorted(set(_FUNCTION.findall(_COMMENT.sub(" ", header))))
