"""Real processes that form a group over MLX's ring on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

TIMEOUT = 120


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a rank ended."""

    status: int
    out: str
    err: str


def start(
    command: Sequence[str],
    size: int,
    folder: Path,
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
) -> list[subprocess.Popen[str]]:
    """Start ``command`` ``size`` times, as ``mlx.launch --backend ring`` does on one host."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))
    return [
        subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**os.environ, **(env or {}), "MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[Ended]:
    """Wait for all; none may be left."""
    try:
        ended = []
        for process in processes:
            out, err = process.communicate(timeout=TIMEOUT)
            ended.append(Ended(status=process.returncode, out=out, err=err))
        return ended
    finally:
        for process in processes:
            process.kill()


def run_code(code: str, size: int, folder: Path, *arguments: str) -> list[Ended]:
    """Run Python code as a group, to the end."""
    return finish(start_code(code, size, folder, *arguments))


def start_code(code: str, size: int, folder: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """Start Python code as a group."""
    file = folder / "ranks_program.py"
    file.write_text(code, encoding="utf-8")
    return start([sys.executable, str(file), *arguments], size, folder, cwd=folder)


def free_ports(count: int) -> list[int]:
    """Return ports of loopback on which nothing listens."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def free_port_pair() -> int:
    """Return a port of loopback on which nothing listens, nor on the next one."""
    while True:
        first = free_ports(1)[0]
        with closing(socket.socket()) as second, suppress(OSError, OverflowError):
            second.bind(("127.0.0.1", first + 1))
            return first
