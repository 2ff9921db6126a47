"""Coverage-guided fuzzing of the readers: ``python -m tests.build_tools.audit.fuzz --seconds 600``.

Whatever the bytes, a reader gives facts or `Malformed`, and an audit a report or
`UnreadableWheelError`, within 10 seconds and 1 GiB.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["build_tools"]):
    from build_tools.audit.auditor import audit
    from build_tools.audit.contents import build_paths
    from build_tools.audit.findings import UnreadableWheelError
    from build_tools.binaries import elf, macho, pe, signature
    from build_tools.binaries.reader import Malformed

from tests.build_tools.audit.makers import INFO, MAC_TAG, Recipe, dylib, universal, unsigned
from tests.build_tools.audit.makers import elf as compiled

WHEEL = Path(tempfile.mkdtemp(prefix="fuzz-")) / f"demo-1.0-{MAC_TAG}.whl"


def readers(data: bytes) -> None:
    """Hand the same bytes to every reader of native files."""
    for read in (elf.read, pe.read, _mach):
        with contextlib.suppress(Malformed):
            read(data)
    build_paths(data)


def _mach(data: bytes) -> None:
    for part in macho.read(data):
        signature.verify(part)


def wheels(data: bytes) -> None:
    """Take the bytes as a wheel; and as every file of one that is sound otherwise."""
    WHEEL.write_bytes(data)
    with contextlib.suppress(UnreadableWheelError):
        audit(WHEEL)
    third = len(data) // 3
    names = (f"{INFO}/METADATA", f"{INFO}/WHEEL", f"{INFO}/RECORD")
    texts = dict(
        zip(names, (data[:third], data[third : 2 * third], data[2 * third :]), strict=True)
    )
    files = {
        **Recipe().contents(),
        **texts,
        f"{INFO}/entry_points.txt": data,
        f"{INFO}/sboms/demo.cdx.json": data,
        "demo/libdemo.dylib": data,
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    WHEEL.write_bytes(packed.getvalue())
    audit(WHEEL)


def seeds(folder: Path) -> None:
    """Write sound files to start from."""
    folder.mkdir(parents=True, exist_ok=True)
    thin = dylib(rpaths=("/usr/lib/swift",))
    for number, data in enumerate((thin, unsigned(thin), universal(thin), compiled())):
        (folder / str(number)).write_bytes(data)
    for number, path in enumerate([Recipe().write(folder)]):
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
