"""Run ``qwen-mfa selftest --metal`` on a runner, and judge a refusal by what the report names.

Usage: ``gpu_selftest.py [--gpu] QWEN_MFA REPORT``. A hosted macOS runner has a paravirtual GPU that
no Metal library of ours supports: there, and only where the report itself names that device as its
one reason, exit status 3 of the self-test is accepted. ``--gpu`` accepts no refusal: for a runner
that has a GPU. Needs nothing but Python; no package is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PASSED, REFUSED = 0, 3
DEVICE, NAME = "Metal device", "paravirtual"


def paravirtual(report: dict[str, Any]) -> str | None:
    """Return the device's description where it is the only thing that was refused."""
    refused = [row for row in report["checks"] if row["refusal"]]
    if report["result"] != "refused" or [row["subject"] for row in refused] != [DEVICE]:
        return None
    found = str(refused[0]["found"])
    named = NAME in found.lower() and report["reasons"] == [refused[0]["refusal"]]
    return found if named else None


def main(arguments: list[str]) -> int:
    """Run, judge, tell, and return the exit status of the step."""
    must = "--gpu" in arguments
    program, report = [word for word in arguments if word != "--gpu"]
    status = subprocess.run(
        [program, "selftest", "--metal", "--report", report], check=False
    ).returncode
    if status == PASSED:
        return _tell("The self-test ran on the GPU of this machine and passed.", 0)
    if status != REFUSED:
        return _tell(f"The self-test failed (exit status {status}).", status)
    try:
        device = paravirtual(json.loads(Path(report).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return _tell(f"The self-test refused and left no report that can be read ({error!r}).", 1)
    if device is None:
        return _tell("The self-test refused, and not for a paravirtual device: see the report.", 1)
    if must:
        return _tell(f"This runner was meant to have a GPU, and has {device}.", 1)
    return _tell(f"No GPU ran anything here: this runner has {device}.", 0)


def _tell(text: str, status: int) -> int:
    sys.stdout.write(f"{text}\n")
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as stream:
            stream.write(f"{text}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
