"""The workflow files as data: jobs, steps, and the shell commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
ASSIGNMENT = re.compile(r"\A[A-Za-z_]\w*=")
KEYWORDS = {"if", "then", "elif", "else", "while", "do", "!", "{", "("}
OURS = ("-m build_tools", "qwen-mfa", "make")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of one job; ``name`` is for messages."""

    file: str
    job: str
    name: str
    data: dict[str, Any]

    @property
    def script(self) -> str:
        """The shell text, "" for a step that uses an action."""
        return str(self.data.get("run", ""))


def load(path: Path) -> dict[str, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    # YAML 1.1 reads the key `on` as a truth value.
    found["on"] = found.pop(True, found.get("on"))
    return found


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load(path)["jobs"]
    return found


def steps(path: Path) -> list[Step]:
    return [
        Step(
            file=path.name,
            job=name,
            name=str(each.get("name", each.get("uses", number))),
            data=each,
        )
        for name, job in jobs(path).items()
        for number, each in enumerate(job.get("steps", []))
    ]


def commands(script: str) -> list[list[str]]:
    """Return the simple commands of ``script``, as words, in its order.

    A reader for the plain shell of our own workflows, not for all of it: each word keeps its
    variables as they are written.
    """
    found: list[list[str]] = []
    for line in script.replace("\\\n", " ").splitlines():
        reader = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        reader.whitespace_split = True
        reader.commenters = "#"
        words: list[str] = []
        for word in [*reader, ";"]:
            if set(word) <= set("();|&"):
                found.append(words)
                words = []
            else:
                words.append(word)
    return [stripped for each in found if (stripped := _strip(each))]


def _strip(words: list[str]) -> list[str]:
    """Remove keywords, assignments and redirections around a command."""
    while words and (words[0] in KEYWORDS or ASSIGNMENT.match(words[0])):
        words = words[1:]
    kept: list[str] = []
    skip = False
    for word in words:
        if set(word) <= set("<>&"):
            skip = True
        elif skip:
            skip = False
        else:
            kept.append(word)
    return [word for word in kept if word != "}"]
