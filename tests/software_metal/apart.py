"""Runs kernels in processes of their own, since a mistake in one ends its process.

``python -m tests.software_metal.apart`` reads a request a line and forks for each, so that Python
and NumPy are started once. An answer is a line, too: how the child ended, what it said on standard
error, and what it computed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.software_metal.attention import Case, perform
from tests.software_metal.simdgroup import one_simdgroup
from tests.standins.software_metal import host

SECONDS = 120  # of one request


def _answer(request: dict[str, Any], folder: Path) -> Any:
    if "body" in request:
        host.use(request["schedule"])
        one_simdgroup(request["body"], lanes=request["lanes"])
        return None
    os.environ["SOFTWARE_METAL_FINDINGS"] = str(folder / "findings")
    case = Case(**{**request["case"], "schedules": tuple(request["case"]["schedules"])})
    return asdict(perform(case, request["source"], folder / "findings"))


def _child(request: dict[str, Any], folder: Path) -> None:
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(said, 2)
    signal.alarm(SECONDS)
    try:
        found = _answer(request, folder)
        (folder / "answer.json").write_text(json.dumps(found), encoding="utf-8")
    except BaseException as error:  # noqa: BLE001 - it is told, whatever it is
        os.write(2, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Serve the requests on standard input."""
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            child = os.fork()
            if child == 0:
                _child(json.loads(line), folder)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            answer = folder / "answer.json"
            told = {
                "status": status,
                "said": (folder / "said").read_text(encoding="utf-8", errors="replace"),
                "answer": json.loads(answer.read_text(encoding="utf-8")) if status == 0 else None,
            }
        print(json.dumps(told), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
