"""Libraries that cannot be used: each gives one clear error.

Attention goes on through MLX where the embedded one is broken, and tells of one that was asked for.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

import qwen_mfa
from qwen_mfa import cli, settings
from qwen_mfa.errors import LibraryError, NativeError, QwenMfaError
from qwen_mfa.native import library
from qwen_mfa.selection import session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.cpu

STUBS = "\n".join(
    f"int {name}() {{ return 0; }}" for name in library.REQUIRED if name != "mfa_get_version"
)
VERSION = "void mfa_get_version(int *a, int *b, int *c) {{ *a = {}; *b = {}; *c = {}; }}"

# Attention through whatever is there, printing the result's error against MLX.
PROBE = """
import mlx.core as mx, qwen_mfa
q = mx.random.normal((1, 4, 128, 64))
a = qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.25)
b = mx.fast.scaled_dot_product_attention(q, q, q, scale=0.25)
print(mx.abs(a - b).max().item() < 1e-5)
"""


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    library.outcome.forget()
    yield
    library.outcome.forget()
    session.start()


def compile_library(path: Path, source: str) -> Path:
    file = path.with_suffix(".c")
    file.write_text(source, encoding="utf-8")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(path), str(file)], check=True)
    return path


def bad_libraries(folder: Path) -> dict[str, tuple[Path, str]]:
    """Return name -> (file, a phrase of the error)."""
    good = library.load().path
    data = good.read_bytes()

    def write(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    foreign = bytearray(data)
    struct.pack_into("<H", foreign, 18, 183 if platform.machine() == "x86_64" else 62)
    old = f"{STUBS}\n{VERSION.format(0, 9, 0)}"
    lacking = f"{STUBS}\n{VERSION.format(1, 0, 0)}".replace("mfa_attention_forward(", "other(")
    macho = struct.pack("<IIIIIIII", 0xFEEDFACF, 0x0100000C, 0, 6, 0, 0, 0, 0)
    return {
        "missing": (folder / "nowhere.so", "no such file"),
        "folder": (folder, "cannot be read"),
        "empty": (write("empty.so", b""), "empty"),
        "text": (write("text.so", b"hello, I am no library"), "not a shared library"),
        "header only": (write("header.so", data[:40]), "truncated"),
        "half": (write("half.so", data[: len(data) // 2]), "truncated"),
        "another architecture": (write("foreign.so", bytes(foreign)), "was built for"),
        "another system": (write("mac.dylib", macho), "built for macOS"),
        "another version": (compile_library(folder / "old.so", old), "version is 0.9.0"),
        "a missing symbol": (
            compile_library(folder / "lacking.so", lacking),
            "lacks the symbol mfa_attention_forward",
        ),
        "unresolved": (
            compile_library(folder / "unresolved.so", "extern int no_such; int *p = &no_such;"),
            "cannot load",
        ),
    }


NAMES = [
    *("missing", "folder", "empty", "text", "header only", "half", "another architecture"),
    *("another system", "another version", "a missing symbol", "unresolved"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="the files are made for the Linux loader")
@pytest.mark.parametrize("name", NAMES)
def test_override_that_cannot_be_used(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, phrase = bad_libraries(tmp_path)[name]
    library.outcome.forget()
    monkeypatch.setenv(settings.LIBRARY, str(path))
    settings.current.forget()
    for _ in range(2):  # the second time from memory
        with pytest.raises(LibraryError, match=phrase) as caught:
            library.load()
    assert str(path) in str(caught.value)
    assert settings.LIBRARY in caught.value.remedy
    session.start()
    q = mx.ones((1, 4, 128, 64))
    for _ in range(2):
        with pytest.raises(LibraryError, match=phrase):
            qwen_mfa.scaled_dot_product_attention(q, q, q, scale=0.25)


@pytest.mark.skipif(sys.platform != "linux", reason="the files are made for the Linux loader")
def test_every_command_names_an_override_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, phrase = bad_libraries(tmp_path)["half"]
    monkeypatch.setenv(settings.LIBRARY, str(path))
    for command in ("doctor", "selftest", "explain 1 4 128 128 64 float32", "run -- nothing"):
        session.start()
        library.outcome.forget()
        assert cli.main(command.split()) == 2
        said = capsys.readouterr().err
        assert str(path) in said
        assert re.search(phrase, said)
        assert settings.LIBRARY in said
    assert cli.main(["info", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["library"]["state"] == "unusable"


def test_override_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy.so"
    shutil.copy(library.load().path, copy)
    library.outcome.forget()
    monkeypatch.setenv(settings.LIBRARY, str(copy))
    settings.current.forget()
    assert library.load().path == copy
    assert library.load().origin == "override"
    assert library.load().is_portable


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the embedded folder that may be damaged."""
    folder = tmp_path / "_native"
    shutil.copytree(library.NATIVE, folder)
    monkeypatch.setattr(library, "NATIVE", folder)
    return folder


def test_the_copy_is_usable(installed: Path) -> None:
    assert library.load().path.parent == installed


def test_damaged_installation(installed: Path) -> None:
    file = next(installed.glob("libMFAFFI.*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(LibraryError, match="SHA-256") as caught:
        library.load()
    assert "Reinstall" in caught.value.remedy
    file.write_bytes(data[:1000])
    library.outcome.forget()
    with pytest.raises(LibraryError, match="truncated"):
        library.load()
    file.unlink()
    library.outcome.forget()
    with pytest.raises(LibraryError, match="missing"):
        library.load()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"library": 3}', '{"library": {"file": "x"}}'])
def test_damaged_manifest(installed: Path, text: str) -> None:
    (installed / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(LibraryError, match="manifest"):
        library.load()


def test_wheel_without_a_library(installed: Path) -> None:
    shutil.rmtree(installed)
    with pytest.raises(LibraryError, match="MLX-only"):
        library.load()


def test_native_errors_carry_code_and_text() -> None:
    found = library.load()
    with pytest.raises(NativeError) as caught:
        found.check("mfa_attention_forward", 1)
    assert caught.value.code == 1
    assert caught.value.text
    assert "mfa_attention_forward failed with code 1" in str(caught.value)
    with pytest.raises(NativeError):
        found.check("mfa_attention_forward", 12345)
    assert issubclass(NativeError, QwenMfaError)


def test_importing_opens_nothing() -> None:
    code = (
        "import sys, qwen_mfa; "
        "print('mlx.core' in sys.modules, 'cffi' in sys.modules, "
        "'qwen_mfa.native.library' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]


def test_loader_variables_do_not_matter(tmp_path: Path) -> None:
    """A library of the same name on LD_LIBRARY_PATH must not be found."""
    compile_library(tmp_path / library.load().path.name, "int decoy;")
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "DYLD_LIBRARY_PATH": str(tmp_path)}
    code = "from qwen_mfa.native import library; print(library.load().origin, library.load().path)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[0] == "embedded"
    assert str(tmp_path) not in done.stdout
