"""Files that were exchanged after the upload: every installer has to refuse them by hash."""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from build_tools.support.files import sha256
from build_tools.wheel import canonical

if TYPE_CHECKING:
    from tests.build_tools.rehearsal.index import Index
    from tests.build_tools.rehearsal.installers import Environment


def check_storage(env: Environment, index: Index, wheel: Path) -> None:
    """A file that was exchanged in the index is refused."""
    index.tampered[wheel.name] = _with_other_code(wheel)
    try:
        _refused(env, "--no-deps", "qwen-mfa")
    finally:
        del index.tampered[wheel.name]


def check_sum(env: Environment, wheel: Path) -> None:
    """Another file than SHA256SUMS names is refused; the one that it names is not."""
    pinned = env.folder / "requirements.txt"
    ask = ("--no-deps", "--require-hashes", "-r", str(pinned))
    text = f"qwen-mfa=={wheel.name.split('-')[1]} --hash=sha256:"
    pinned.write_text(f"{text}{sha256(wheel)}\n", encoding="utf-8")
    env.install(*ask)
    env.uninstall()
    pinned.write_text(f"{text}{'0' * 64}\n", encoding="utf-8")
    _refused(env, *ask)


def _refused(env: Environment, *arguments: str) -> None:
    done = env.try_install(*arguments)
    assert done.status != 0, done.text
    assert re.search("hash", done.text, re.IGNORECASE), done.text
    assert env.installed() is None


def _with_other_code(wheel: Path) -> bytes:
    """Return a sound wheel of the same name with one module more, as an attacker would make it."""
    with tempfile.TemporaryDirectory(prefix="qwen-mfa-tampered-") as folder:
        copy = Path(folder) / wheel.name
        shutil.copyfile(wheel, copy)
        with zipfile.ZipFile(copy, "a") as archive:
            archive.writestr("qwen_mfa/unwanted.py", '"""Not ours."""\n')
        canonical.rewrite_wheel(copy)
        return copy.read_bytes()
