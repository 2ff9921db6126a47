"""Rehearse a release: build, publish to an index on loopback, then install as users do.

Signs nothing and publishes nowhere else. Writes docs/platforms.md when everything passes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from build_tools.release import installers, platform_matrix, project, rehearsal
from build_tools.release.index import Index
from build_tools.release.installers import Environment
from build_tools.release.rehearsal import Report
from build_tools.support import paths, tables
from build_tools.support.console import say
from build_tools.support.errors import BuildToolsError
from build_tools.support.process import log_file

if TYPE_CHECKING:
    import argparse

HELP = "rehearse a release against an index on loopback"
OLDEST = (3, 10)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--no-write", action="store_true", help=f"leave {platform_matrix.DOCUMENT} as it is"
    )


def run(args: argparse.Namespace) -> int:
    """Rehearse; exit status 1 when anything did not go as it should."""
    subject = project.load()
    pythons = installers.pythons()
    fit = {version: path for version, path in pythons.items() if _key(version) >= OLDEST}
    report = Report()
    with tempfile.TemporaryDirectory(prefix="qwen-mfa-rehearsal-") as folder:
        work = Path(folder)
        built = rehearsal.build(work / "built", subject)
        rehearsal.mirror(work / "index", subject, fit.values())
        with Index(folder=work / "index") as index:
            rehearsal.check_publishing(report, index, built, subject)
            _environments(report, index, built, subject, fit=fit, all_of_them=pythons, work=work)
            rows = _rows(report, index, subject.version)
    if rows and not report.failed and not args.no_write:
        text = platform_matrix.document(rows, subject.version)
        (paths.ROOT / platform_matrix.DOCUMENT).write_text(text, encoding="utf-8")
        say(f"wrote {platform_matrix.DOCUMENT}")
    say(f"{len(report.passed)} passed, {len(report.failed)} failed; log: {log_file()}")
    return 1 if report.failed else 0


def _environments(
    report: Report,
    index: Index,
    built: rehearsal.Built,
    subject: project.Project,
    *,
    fit: dict[str, Path],
    all_of_them: dict[str, Path],
    work: Path,
) -> None:
    real = built.native
    native = "-".join(real.name.removesuffix(".whl").split("-")[-3:])
    newest = fit[max(fit, key=_key)]
    for installer in installers.INSTALLERS:

        def env(name: str, python: Path, installer: str = installer) -> Environment:
            folder = work / "environments" / f"{installer}-{name}"
            return Environment(folder=folder, python=python, installer=installer, url=index.url)

        for version, python in fit.items():
            rehearsal.check_installation(report, env(version, python), subject, native=native)
        for version in [each for each in all_of_them if each not in fit][-1:]:
            rehearsal.check_refused(report, env(version, all_of_them[version]), version)
        rehearsal.check_versions(report, env("versions", newest), subject)
        rehearsal.check_damage(report, env("damage", newest), index, real)
    rehearsal.check_sdist(report, env("sdist", newest), subject, native=native)


def _rows(report: Report, index: Index, version: str) -> list[platform_matrix.Row]:
    try:
        rows = platform_matrix.rows(version, url=index.url, ask_mlx=True)
    except BuildToolsError as error:
        report.failed.append(str(error))
        say(f"FAILED  platform matrix: {error}")
        return []
    surprises = platform_matrix.surprises(rows)
    report.failed += surprises
    for line in surprises:
        say(f"FAILED  {line}")
    table = tables.new("Platforms", "machine", "file", "engine", "MLX there")
    for row in rows:
        table.add_row(row.machine.name, row.file, row.gets, "yes" if row.mlx else "no")
    tables.show(table)
    return rows


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
