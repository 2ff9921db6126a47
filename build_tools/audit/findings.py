"""What an audit says: findings, each with a code, a severity, a place, the fact and the mend."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from build_tools.audit.codes import CODES
from build_tools.support.errors import BuildToolsError


class UnreadableWheelError(BuildToolsError):
    """The file is no wheel that could be audited; the message says why and what to do."""


class AuditError(BuildToolsError):
    """A wheel fails the policy that it has to pass; the message lists the findings."""


class Severity(Enum):
    """How much a finding matters."""

    ERROR = "error"  # installs or works wrongly, or not at all, on a machine that the tag admits
    WARNING = "warning"  # works by luck, or misleads installers and readers
    NOTE = "note"  # hygiene: leaks, reproducibility, hardening; the exit status ignores it


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong in one place."""

    code: str
    severity: Severity
    file: str  # name inside the wheel, or the wheel's own name
    what: str
    mend: str

    def as_dict(self) -> dict[str, str]:
        """Return the finding for JSON."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "file": self.file,
            "what": self.what,
            "mend": self.mend,
        }


def found(code: str, file: str, what: str) -> Finding:
    """Return a finding with the severity and the mend that its code has by default."""
    severity, _, mend = CODES[code]
    return Finding(
        code=code,
        severity=Severity(severity),
        file=printable(file),
        what=printable(what),
        mend=mend,
    )


def printable(text: str, limit: int = 400) -> str:
    """Return ``text`` without control characters or lone surrogates, cut at ``limit``."""
    safe = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text[:limit]
    )
    return safe + ("…" if len(text) > limit else "")
