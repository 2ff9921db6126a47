"""Canonical archives: the same contents give the same bytes, however they were packed."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from build_tools.audit.auditor import audit
from build_tools.wheel.archives import Entry, UnreadableError, read
from build_tools.wheel.canonical import (
    CanonicalError,
    pack_wheel,
    rewrite_sdist,
    rewrite_wheel,
    source_date_epoch,
)
from tests.build_tools.audit.makers import INFO, MadeWheel, linux, needs_cc

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


def messy(path: Path, seed: int) -> None:
    """Pack the same files in another order, with other times, modes, compression and a comment."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    contents = [(name, entry.content) for name, entry in MadeWheel().entries().items()]
    rng.shuffle(contents)
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = bytes([seed])
        archive.writestr(f"{INFO}/", b"")
        for name, true in contents:
            data = b"old,,\n" if name.endswith("/RECORD") else true
            info = zipfile.ZipInfo(name, (2000 + seed, 1, 2, 3, 4, 6))
            info.create_system = seed % 4
            info.external_attr = rng.choice([0o100600, 0o100666, 0o100640]) << 16
            info.compress_type = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
            info.extra = b"\x99\x99\x02\x00ab"
            archive.writestr(info, data, compresslevel=rng.choice([1, 9]))


def test_wheels(tmp_path: Path) -> None:
    results = set()
    for seed in range(5):
        path = tmp_path / f"{seed}" / "qwen_mfa-1.0-py3-none-any.whl"
        path.parent.mkdir()
        messy(path, seed)
        assert {"not-canonical", "record"} <= {each.code for each in audit(path).findings}
        rewrite_wheel(path)
        assert audit(path).findings == ()
        results.add(path.read_bytes())
        assert list(path.parent.iterdir()) == [path], "nothing left beside it"
    assert len(results) == 1
    rewrite_wheel(path)
    assert {path.read_bytes()} == results


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_no_zlib_has_a_say(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = MadeWheel().write(tmp_path) if kind == "wheel" else tmp_path / "demo-1.0.tar.gz"
    if kind == "sdist":
        tarball(path, 1)
    rewrite = rewrite_wheel if kind == "wheel" else rewrite_sdist
    rewrite(path)
    before = path.read_bytes()
    monkeypatch.setattr("zlib.compressobj", None)
    monkeypatch.setattr("zlib.compress", None)
    rewrite(path)
    assert path.read_bytes() == before


@needs_cc
def test_executable_bits_stay(tmp_path: Path) -> None:
    path = linux().write(tmp_path)
    entries = read(path).entries
    script = f"{INFO.removesuffix('.dist-info')}.data/scripts/run"
    entries[script] = Entry(content=b"#!/bin/sh\n", executable=True)
    entries[f"{script}.txt"] = Entry(content=b"#!/bin/sh\n")
    path.write_bytes(pack_wheel(entries, 0x4000_0000))
    rewrite_wheel(path)
    with zipfile.ZipFile(path) as archive:
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    assert modes["qwen_mfa/_native/libMFAFFI.so"] == modes[script] == 0o100755
    assert modes[f"{script}.txt"] == modes["qwen_mfa/__init__.py"] == 0o100644


def test_an_sbom_is_added_and_recorded(tmp_path: Path) -> None:
    path = MadeWheel().write(tmp_path)
    rewrite_wheel(path, sboms={"more.spdx": "SPDXVersion: SPDX-2.3\n"})
    assert {each.code for each in audit(path).findings} == {"file-unexpected"}
    with zipfile.ZipFile(path) as archive:
        assert f"{INFO}/sboms/more.spdx" in archive.namelist()
        assert archive.namelist()[-1] == f"{INFO}/RECORD"


def test_bad_wheels_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "qwen_mfa-1.0-py3-none-any.whl"
    for data in (b"", b"text", MadeWheel().write(tmp_path).read_bytes()[:500]):
        path.write_bytes(data)
        with pytest.raises(CanonicalError, match="It cannot be rewritten"):
            rewrite_wheel(path)
        assert path.read_bytes() == data
    without = MadeWheel(files={f"{INFO}/RECORD": None}).write(tmp_path)
    with pytest.raises(CanonicalError, match="has one RECORD, this one has 0"):
        rewrite_wheel(without)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "C:/x", "a\\x", "a\nb", "a//b"])
def test_unsafe_names_are_refused(name: str, tmp_path: Path) -> None:
    path = MadeWheel().write(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"")
    with pytest.raises(UnreadableError, match="no safe name"):
        read(path)


def test_the_date(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert source_date_epoch() == 315_532_800
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    path = MadeWheel().write(tmp_path)
    rewrite_wheel(path)
    with zipfile.ZipFile(path) as archive:
        assert {info.date_time for info in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert source_date_epoch() == 315_532_800, "zip files begin in 1980"


@pytest.mark.parametrize("date", ["", "now", "-1", "1e9", "9" * 30, "١٢٣", "4354819199"])
def test_bad_dates(date: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", date)
    with pytest.raises(CanonicalError, match="no number of seconds"):
        source_date_epoch()


def tarball(path: Path, seed: int, extra: tarfile.TarInfo | None = None) -> None:
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    names = [f"demo-1.0/{name}" for name in ("a.py", "b/c.py", "run.sh", "PKG-INFO")]
    rng.shuffle(names)
    with (
        gzip.GzipFile(path, "wb", mtime=seed) as stream,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        folder = tarfile.TarInfo("demo-1.0/b")
        folder.type = tarfile.DIRTYPE
        for member in (folder, *map(tarfile.TarInfo, names), *([extra] if extra else [])):
            member.uid, member.uname, member.mtime = seed, f"user{seed}", seed
            member.mode = 0o700 if member.name.endswith(".sh") else rng.choice([0o600, 0o664])
            data = member.name.encode() if member.isreg() else b""
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_sdists(tmp_path: Path) -> None:
    results = set()
    for seed in range(1, 5):
        path = tmp_path / f"demo-{seed}.tar.gz"
        tarball(path, seed)
        rewrite_sdist(path)
        results.add(path.read_bytes())
    assert len(results) == 1
    with tarfile.open(path) as archive:
        modes = {member.name: member.mode for member in archive}
        assert modes.pop("demo-1.0/run.sh") == 0o755
        assert set(modes.values()) == {0o644}
        assert archive.getnames() == sorted(archive.getnames())


def test_bad_sdists(tmp_path: Path) -> None:
    path = tmp_path / "demo.tar.gz"
    link = tarfile.TarInfo("demo-1.0/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    for extra in (link, tarfile.TarInfo("demo-1.0/../../x"), tarfile.TarInfo("/x")):
        tarball(path, 1, extra)
        before = path.read_bytes()
        with pytest.raises(CanonicalError, match=r"a link or a special file|no safe name"):
            rewrite_sdist(path)
        assert path.read_bytes() == before
    path.write_bytes(b"text")
    with pytest.raises(CanonicalError, match="It cannot be rewritten"):
        rewrite_sdist(path)
    assert list(tmp_path.iterdir()) == [path]
