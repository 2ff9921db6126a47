"""Makes dataclasses of JSON objects: every value of its field's type, or nothing at all.

A record that says ``"ok": "no"`` must not count as true, nor one with a text for a gain raise where
it is used. Only the types that our records have are known here.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from math import isfinite
from typing import Any, TypeVar

T = TypeVar("T")
_LARGEST = 1e300


def parse(kind: type[T], record: object) -> T | None:
    """Return a frozen dataclass of bool, int, float and str fields; ``None`` if anything misfits.

    Args:
        kind: The dataclass, declared in a module with postponed annotations.
        record: A JSON value. Fields with defaults may be absent; there may be no others.

    """
    if not isinstance(record, dict):
        return None
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if not record.keys() <= known.keys():
        return None
    for name, field in known.items():
        if name not in record:
            if field.default is MISSING:
                return None
        elif not _fits(record[name], str(field.type)):
            return None
    return kind(**record)


def _fits(value: Any, annotation: str) -> bool:
    if annotation == "float":
        # Without this order, a number of a thousand digits raises in isfinite.
        is_number = type(value) in {int, float} and -_LARGEST < value < _LARGEST
        return is_number and isfinite(value)
    return type(value).__name__ == annotation and annotation in {"bool", "int", "str"}
