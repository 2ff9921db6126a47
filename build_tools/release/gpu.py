"""What release notes say of GPUs: which ones the self-test ran on, or that there was none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from build_tools.support.errors import ReleaseError

TITLE = "### GPU"
NONE = (
    "No GPU ran this release: the runners that built and tested it have a virtual one, which the "
    "Metal library refuses. It is validated on each machine on first use, and MLX computes where "
    "it does not hold."
)


def notes(reports: Path | None) -> str:
    """Return the section for the reports of ``qwen-mfa selftest --metal`` below ``reports``.

    Raises:
        ReleaseError: A report cannot be read, or says that something is wrong.

    """
    paths = sorted(reports.rglob("*.json")) if reports is not None else []
    ran = [told for path in paths if (told := _ran(path)) is not None]
    lines = "\n".join(f"- {told}" for told in dict.fromkeys(ran))
    text = f"The self-test of the Metal library passed on:\n\n{lines}" if ran else NONE
    return f"{TITLE}\n\n{text}"


def _ran(path: Path) -> str | None:
    """Return machine and system of a report that passed, ``None`` for one that refused."""
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = {str(row["subject"]): str(row["found"]) for row in report["checks"]}
        result = str(report["result"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} is no report of `qwen-mfa selftest --metal` ({error!r})"
        raise ReleaseError(msg) from error
    if result == "refused":
        return None
    if result != "passed":
        msg = f"the self-test of {path} says {result}: {report.get('reasons')}"
        raise ReleaseError(msg)
    return (
        f"{found.get('Metal device', 'an unnamed device')}; macOS {found.get('macOS', 'unknown')}"
    )
