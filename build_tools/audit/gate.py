"""The gate in front of dist/: a wheel of ours passes the strict policy, or does not exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from build_tools.audit.auditor import audit
from build_tools.audit.findings import AuditError, Severity
from build_tools.audit.policy import strict

if TYPE_CHECKING:
    from pathlib import Path

    from build_tools.audit.policy import Policy


def require(wheel: Path, policy: Policy | None = None) -> None:
    """Return when ``wheel`` passes ``policy`` (the strict one by default); remove it otherwise.

    Raises:
        AuditError: With every finding that counts, and how to mend it.

    """
    try:
        problem = _problem(wheel, policy or strict())
    except BaseException:
        wheel.unlink(missing_ok=True)
        raise
    if problem:
        wheel.unlink(missing_ok=True)
        raise AuditError(problem)


def _problem(wheel: Path, policy: Policy) -> str:
    report = audit(wheel, policy)
    if not report.failed:
        return ""
    lines = [
        f"  {each.code}: {each.file}: {each.what}. {each.mend}"
        for each in report.findings
        if each.severity is not Severity.NOTE
    ]
    return f"{wheel.name} fails the audit and was removed:\n" + "\n".join(lines)
