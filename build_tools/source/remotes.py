"""Where a pinned repository can be had: its own URL, and mirrors; with retries and backoff."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from build_tools.support.console import say
from build_tools.support.errors import BuildToolsError, SourceError, ToolError, UsageError

MIRROR_VARIABLE = "QWEN_MFA_MIRROR"
OFFLINE_VARIABLE = "QWEN_MFA_OFFLINE"
# The server answered, and the answer will not change: asking again is of no use.
FINAL = ("not our ref", "unadvertised object", "couldn't find remote ref", "does not appear to be")
# Git took what was sent and refuses it: neither the network nor another attempt is the answer.
REFUSED = ("fsck error", "invalid index-pack output", "did not send all necessary objects")


@dataclass(frozen=True, kw_only=True)
class Remotes:
    """Whom to ask, how often, how long."""

    mirror: str | None = None
    offline: bool = False
    attempts: int = 3
    backoff: float = 2.0
    timeout: float = 600.0

    def urls(self, url: str) -> list[str]:
        """Return the addresses of the repository ``url``, in the order in which they are asked.

        A mirror that is a folder comes first: it costs nothing, and the tree hash decides anyway.
        A mirror that is a URL comes last.
        """
        own = [] if self.offline else [url]
        if self.mirror is None:
            return own
        if urlsplit(self.mirror).scheme:
            owner, name = _names(url)
            tail = f"{owner}/{name}.git" if owner else f"{name}.git"
            return [*own, f"{self.mirror.rstrip('/')}/{tail}"]
        found = find_in_folder(Path(self.mirror), url)
        return ([] if found is None else [found.resolve().as_uri()]) + own


def choose(mirror: str | None = None, *, offline: bool | None = None) -> Remotes:
    """Return whom to ask; what is ``None`` is as the environment variables say.

    Raises:
        UsageError: Offline without a mirror, or a mirror folder that does not exist.

    """
    mirror = mirror or os.environ.get(MIRROR_VARIABLE) or None
    if offline is None:
        offline = os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0")
    if mirror is None and offline:
        msg = f"--offline needs a mirror: give --mirror DIR or set {MIRROR_VARIABLE}"
        raise UsageError(msg)
    if mirror is not None and not urlsplit(mirror).scheme and not Path(mirror).is_dir():
        msg = f"the mirror {mirror} is not a folder; give an existing folder or a URL"
        raise UsageError(msg)
    return Remotes(mirror=mirror, offline=offline)


def find_in_folder(folder: Path, url: str) -> Path | None:
    """Return the repository for ``url`` inside the mirror ``folder``, or None."""
    owner, name = _names(url)
    forms = [f"{name}.git", name]
    if owner:
        forms = [f"{owner}/{name}.git", f"{owner}/{name}", f"{owner}+{name}/repo", *forms]
    for form in forms:
        path = folder / form
        if (path / "HEAD").is_file() or (path / ".git").exists():
            return path
    return None


def same_repository(one: str, other: str) -> bool:
    """Whether two URLs name one repository, give or take ``.git`` and a trailing slash."""

    def plain(url: str) -> tuple[str, str, str]:
        parts = urlsplit(url)
        return parts.scheme.lower(), parts.netloc.lower(), _without_suffix(parts.path)

    return plain(one) == plain(other)


def ask(remotes: Remotes, url: str, request: Callable[[str], None], *, what: str) -> str:
    """Call ``request`` with each address of ``url`` until one succeeds, and return that address.

    Raises:
        SourceError: None did; the message lists every address and its last failure.

    """
    failures: list[str] = []
    refused = False
    for address in remotes.urls(url):
        reason = _try(remotes, address, request, what=what)
        if reason is None:
            return address
        refused |= _says(reason, REFUSED)
        failures.append(f"  {address}: {reason}")
    if not failures:
        msg = f"{what}: {url} is not in the mirror {remotes.mirror} and --offline is set"
        raise SourceError(msg)
    tried = "\n".join(failures)
    advice = (
        "Git refuses what it was sent: the commit, or the copy of it, is damaged or malicious. "
        "Nothing was kept; pin another commit, or report it upstream."
        if refused
        else "Check the network, or give --mirror DIR|URL "
        f"(or {MIRROR_VARIABLE}) with a copy of it."
    )
    msg = f"{what} could not be had:\n{tried}\n{advice}"
    raise SourceError(msg)


def _says(reason: str, words: tuple[str, ...]) -> bool:
    return any(word in reason for word in words)


def _try(
    remotes: Remotes, address: str, request: Callable[[str], None], *, what: str
) -> str | None:
    """Ask one address until it answers; return None, or why it was given up."""
    attempt = 1
    while True:
        reason = _failure(address, request)
        if reason is None:
            return None
        if attempt == remotes.attempts or _says(reason, FINAL + REFUSED):
            say(f"{what}: {address} gave up: {reason}")
            return reason
        pause = remotes.backoff * 2 ** (attempt - 1)
        say(f"{what}: {address} failed ({reason}); again in {pause:g} s")
        time.sleep(pause)
        attempt += 1


def _failure(address: str, request: Callable[[str], None]) -> str | None:
    try:
        request(address)
    except (ToolError, SourceError) as error:
        return _reason(error)
    return None


def _reason(error: BuildToolsError) -> str:
    """Return the lines of git's output that say most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal:", "error:", "remote error:"))]
    if any("ran longer than" in line for line in lines):
        return next(line for line in lines if "ran longer than" in line)
    return "; ".join(telling[-3:]) or lines[0]


def _names(url: str) -> tuple[str, str]:
    parts = [part for part in _without_suffix(urlsplit(url).path).split("/") if part]
    if not parts:
        msg = f"the URL {url} names no repository"
        raise SourceError(msg)
    return (parts[-2] if len(parts) > 1 else "", parts[-1])


def _without_suffix(path: str) -> str:
    return path.rstrip("/").removesuffix(".git")
