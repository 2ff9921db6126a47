"""Coverage-guided fuzzing of the readers: ``python -m tests.build_tools.audit.fuzz --seconds 600``.

Whatever the bytes, a reader gives facts or `Malformed`, and an audit a report or
`UnreadableError`, within 10 seconds and 1 GiB.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["build_tools"]):
    from build_tools.audit.auditor import audit
    from build_tools.binaries import elf, macho
    from build_tools.binaries.build_paths import build_paths
    from build_tools.binaries.reader import Malformed
    from build_tools.binaries.relocate.adhoc import sign
    from build_tools.support.errors import RelocationError
    from build_tools.wheel.archives import UnreadableError

from tests.build_tools.audit.makers import INFO, TOP, MadeWheel, dylib, mac, unsigned
from tests.build_tools.audit.makers import elf as compiled

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


def readers(data: bytes) -> None:
    """Hand the same bytes to every reader of native files."""
    for read in (elf.read, macho.read):
        with contextlib.suppress(Malformed):
            read(data)
    with contextlib.suppress(RelocationError):
        sign(data, identifier="libdemo.dylib")
    build_paths(data)


def wheels(data: bytes) -> None:
    """Take the bytes as an archive; and as every file of a wheel that is sound otherwise."""
    for name in (f"{TOP}-py3-none-any.whl", f"{TOP}.tar.gz"):
        (FOLDER / name).write_bytes(data)
        with contextlib.suppress(UnreadableError):
            audit(FOLDER / name)
    third = len(data) // 3
    files: dict[str, bytes | None] = {
        f"{INFO}/METADATA": data[:third],
        f"{INFO}/WHEEL": data[third : 2 * third],
        f"{INFO}/entry_points.txt": data,
        f"{INFO}/sboms/qwen-mfa.cdx.json": data,
        "qwen_mfa/_native/manifest.json": data[2 * third :],
        "qwen_mfa/_native/libMFAFFI.dylib": data,
    }
    audit(mac(files=files, record=data[2 * third :]).write(FOLDER))


def seeds(folder: Path) -> None:
    """Write sound files to start from."""
    folder.mkdir(parents=True, exist_ok=True)
    thin = dylib(rpaths=("/usr/lib/swift",))
    for number, data in enumerate((thin, unsigned(thin), compiled())):
        (folder / str(number)).write_bytes(data)
    for number, path in enumerate([MadeWheel().write(folder)]):
        path.rename(folder / f"wheel-{number}")


def main() -> None:
    """Fuzz for a while; libFuzzer ends the process with a status other than 0 on a failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--target", choices=["readers", "wheels"], default="readers")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"))
    args = parser.parse_args()
    corpus = args.corpus / args.target
    seeds(corpus)
    target = {"readers": readers, "wheels": wheels}[args.target]
    options = [
        f"-max_total_time={args.seconds}",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-max_len=131072",
        f"-artifact_prefix={args.corpus}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
