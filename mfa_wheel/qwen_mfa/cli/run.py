"""Run a program with mflux using this package's attention, and say at the end what came of it.

The program is a console script of this Python environment, a Python file, or a module (-m). It
runs inside this process: arguments, signals, standard streams and the exit status are its own.
Other Python processes that it starts run without the integration.
"""

from __future__ import annotations

import argparse
import atexit
import importlib.metadata
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_mfa import telemetry
from qwen_mfa.cli import precision
from qwen_mfa.errors import RunError
from qwen_mfa.integrations import mflux
from qwen_mfa.integrations.distributed import agreement
from qwen_mfa.integrations.distributed.group import END_LIMIT
from qwen_mfa.integrations.distributed.heads import PART as PART_OF_HEADS
from qwen_mfa.integrations.mflux.options import SWITCHES
from qwen_mfa.integrations.mflux.together import quiet_worker, versions
from qwen_mfa.integrations.usage import Usage
from qwen_mfa.kernels import mlx

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from qwen_mfa.integrations.mflux.together import Together


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.usage = "qwen-mfa run [options] -- PROGRAM [ARGS …]  |  -- -m MODULE [ARGS …]"
    parser.add_argument("--quiet", action="store_true", help="do not print the line at the end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a report to FILE")
    parser.add_argument(
        "--models",
        default="qwen,qwen21",
        metavar="NAMES",
        help="models of mflux, separated by commas, or 'all' (default: %(default)s)",
    )
    for name, switch in SWITCHES.items():
        option, default = name.replace("_", "-"), switch.values[0]
        if isinstance(default, bool):
            parser.add_argument(
                f"--no-{option}" if default else f"--{option}",
                dest=name,
                action="store_false" if default else "store_true",
                help=switch.help,
            )
        else:
            parser.add_argument(
                f"--{option}", choices=switch.values, default=default, help=switch.help
            )
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Enable, run, report; return the program's exit status.

    Raises:
        RunError: There is no such program, or the report's folder does not exist.
        HostError: mflux is missing or not as expected. The program was not started.

    """
    words = args.program[1:] if args.program[:1] == ["--"] else args.program
    program = find(words)
    _check_report(args.json)
    models = args.models if args.models == "all" else args.models.split(",")
    try:
        mflux.enable(models, **{name: getattr(args, name) for name in SWITCHES})
    except ValueError as error:
        raise RunError(str(error)) from error
    step = mflux.step()
    together = None if step is None else step.together
    if together is not None:
        switches = {f"--{name.replace('_', '-')}": getattr(args, name) for name in SWITCHES}
        facts = {**versions(), "arguments": words, "--models": args.models, **switches}
        agreement.require(together.team, facts)
        if together.team.rank:
            program = _as_worker(program)
    usage = Usage()
    usage.start()
    status, interrupted = _run(program)
    report = describe(usage, words, status, compare=not (interrupted or together))
    if together is not None:
        _say_what_was_split(together, report)
    if together is None or not together.team.rank:
        if not args.quiet:
            print(f"qwen-mfa: {report['summary']}", file=sys.stderr, flush=True)
        if args.json is not None:
            _write(args.json, report)
    # Last: whoever waits in vain here has nothing left to lose.
    if together is not None and status == 0 and not interrupted:
        together.team.part(limit=END_LIMIT)
    return status


def _as_worker(program: Callable[[], Any]) -> Callable[[], Any]:
    def quietly() -> Any:
        with quiet_worker():
            return program()

    return quietly


def _say_what_was_split(together: Together, report: dict[str, Any]) -> None:
    """Add to the report what the ranks did together; workers print it."""
    team, split, heads = together.team, together.split, together.heads
    part = (
        f"rank {team.rank} of {team.size} took part in {split.steps} steps "
        f"({split.seconds['passes']:.2f} s in passes, {split.seconds['waiting']:.2f} s waiting)"
    )
    report["distributed"] = {"rank": team.rank, "size": team.size, "steps": split.steps}
    report["distributed"] |= {"seconds": dict(split.seconds), "names": list(team.names)}
    if heads is not None:
        found = [asdict(finding) for finding in heads.findings.values()]
        report["distributed"]["heads"] = {"findings": found, "seconds": dict(heads.seconds)}
        told = report["parts"].get(PART_OF_HEADS, {})
        part += "".join(f"; heads {outcome}, {number} times" for outcome, number in told.items())
    report["summary"] += f"; {part}"
    if not split.steps:
        report["summary"] += ": no step had two passes to split (--distributed heads shares one)"
    if team.rank:
        print(f"qwen-mfa: {part}", file=sys.stderr, flush=True)


def find(words: list[str]) -> Callable[[], Any]:
    """Return what runs the program, with ``sys.argv`` and ``sys.path`` as it would find them.

    Raises:
        RunError: No program is named, or it is not one that can run inside this process.

    """
    if not words or (words[0] == "-m" and len(words) == 1):
        msg = "name the program to run: qwen-mfa run -- mflux-generate-qwen --prompt …"
        raise RunError(msg)
    if words[0] == "-m":
        return lambda: _run_module(words[1], words[2:])
    name = Path(words[0]).name
    scripts = importlib.metadata.entry_points(group="console_scripts", name=name)
    path = shutil.which(words[0])
    # A bare name means this environment's script, whatever else is on PATH.
    if scripts and (name == words[0] or (path is not None and _is_ours(Path(path)))):
        script = next(iter(scripts))
        return lambda: _run_script(script, path or words[0], words[1:])
    if path is None and Path(words[0]).is_file():
        path = words[0]
    if path is not None and (path.endswith(".py") or _is_python(Path(path))):
        return lambda: _run_file(str(path), words[1:])
    if path is None and name.startswith("mflux-"):
        mflux.check()  # says how to install it, where it is missing
    where = f"{path} is no Python program" if path else f"there is no program {words[0]!r}"
    msg = (
        f"{where} of this environment ({sys.prefix}): install the one that it belongs to here, or "
        "name a Python file, or a module with -m"
    )
    raise RunError(msg)


def describe(usage: Usage, words: list[str], status: int, *, compare: bool) -> dict[str, Any]:
    """Collect what happened; ``summary`` says it in one line."""
    saving = usage.saving() if compare else None
    return {
        "summary": _summary(usage, saving),
        "program": words,
        "exit_status": status,
        "calls": dict(usage.kernels),
        "seconds": dict(usage.seconds),
        "padding_removed": usage.padding_removed,
        "reasons_for_mlx": dict(usage.reasons),
        "saving": None if saving is None else {**asdict(saving), "seconds": saving.seconds},
        "parts": _parts(),
        "integration": asdict(mflux.status()),
    }


def _parts() -> dict[str, dict[str, int]]:
    """Return what became of each part of a step, and how often."""
    found: dict[str, dict[str, int]] = {}
    for (part, outcome), number in sorted(telemetry.stats().parts.items()):
        found.setdefault(part, {})[outcome] = number
    return found


def _around_attention(parts: dict[str, dict[str, int]]) -> list[str]:
    """Say what was done around attention, shortly."""
    said = []
    fused = parts.get("fused blocks", {})
    if fused:
        total = sum(fused.values())
        why = max(fused, key=lambda outcome: fused[outcome])
        count = fused.get("fused", 0)
        said.append(f"fused blocks {count} of {total}" + ("" if why == "fused" else f" ({why})"))
    started = parts.get("early start", {}).get("starts", 0)
    if started:
        said.append(f"{started} early starts")
    skipped = parts.get("negative passes", {}).get("skipped: guidance is 1", 0)
    if skipped:
        said.append(f"{skipped} negative passes skipped (guidance is 1)")
    modulation = parts.get("modulation", {})
    shared = modulation.get("shared by both passes", 0)
    if shared:
        said.append(f"modulation shared {shared} times")
    freed = modulation.get("MiB of weights let go", 0)
    if freed:
        said.append(f"{freed} MiB of modulation weights let go")
    mask = parts.get("text mask", {})
    if mask:
        said.append(f"text mask converted {mask.get('converted', 0)} of {sum(mask.values())} times")
    said += [f"{n} {outcome}" for outcome, n in parts.get("precision", {}).items()]
    said += [
        f"{n} steps of Qwen-Image 2.1 {outcome}"
        for outcome, n in parts.get("Qwen-Image 2.1's steps", {}).items()
    ]
    gain = mflux.status().bfloat16
    if gain is not None:
        said.append(precision.sentence(gain))
    return said


def _summary(usage: Usage, saving: Any) -> str:
    total = sum(usage.kernels.values())
    if not total:
        bound = mflux.status().bound
        why = "it was not called" if bound else "no module of the models asked for was imported"
        return f"attention never ran through qwen-mfa ({why})"
    counts = ", ".join(f"{name} {count}" for name, count in usage.kernels.most_common())
    parts = [f"attention ran {total} times ({counts})"]
    if usage.padding_removed:
        parts.append(f"padding removed {usage.padding_removed} times")
    if saving is not None:
        how = "measured" if saving.measured else "estimated from a part of each shape"
        word = "saved" if saving.seconds >= 0 else "lost"
        parts.append(
            f"{word} {abs(saving.seconds):.2f} s against MLX ({saving.native:.2f} s instead of "
            f"{saving.mlx:.2f} s, {how})"
        )
    elif not usage.native:
        reason = usage.reasons.most_common(1)
        parts.append(f"nothing gained: {reason[0][0]}" if reason else "nothing gained")
    if usage.native and usage.kernels[mlx.name]:
        parts.append(f"MLX for the rest: {usage.reasons.most_common(1)[0][0]}")
    return "; ".join([*parts, *_around_attention(_parts())])


def _run(program: Callable[[], Any]) -> tuple[int, bool]:
    """Run; return the exit status, and whether Ctrl-C ended it."""
    ending: list[signal.Signals] = []
    # Registered before the program's own exit handlers, it runs after them.
    atexit.register(_end_by, ending)
    try:
        return _status(program()), False
    except SystemExit as end:
        return _status(end.code), False
    except KeyboardInterrupt as error:
        _print_error(error)
        ending.append(signal.SIGINT)
        return 128 + signal.SIGINT, True
    except BaseException as error:  # noqa: BLE001 - reported as the interpreter does
        _print_error(error)
        return 1, False


def _end_by(signals: list[signal.Signals]) -> None:
    """End as the interpreter does when nobody catches KeyboardInterrupt: by the signal itself."""
    if signals:
        sys.stdout.flush()
        signal.signal(signals[0], signal.SIG_DFL)
        os.kill(os.getpid(), signals[0])


def _status(code: object) -> int:
    """Read what a program returned or passed to ``sys.exit`` as the interpreter does."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _print_error(error: BaseException) -> None:
    own = Path(__file__)
    trace: TracebackType | None = error.__traceback__
    # Leave out our own frames, and those of runpy between us and the program.
    while trace is not None and trace.tb_next is not None:
        file = trace.tb_frame.f_code.co_filename
        if Path(file) != own and "runpy" not in file:
            break
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)


def _run_script(script: importlib.metadata.EntryPoint, path: str, arguments: list[str]) -> Any:
    sys.argv = [path, *arguments]
    return script.load()()


def _run_module(module: str, arguments: list[str]) -> None:
    sys.argv = [module, *arguments]
    sys.path.insert(0, str(Path.cwd()))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _run_file(path: str, arguments: list[str]) -> None:
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).resolve().parent))
    runpy.run_path(path, run_name="__main__")


def _is_ours(path: Path) -> bool:
    """Whether a script lies in this environment."""
    return path.parent.resolve() == Path(sys.executable).parent.resolve()


def _is_python(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            first = file.readline(200)
    except OSError:
        return False
    return first.startswith(b"#!") and b"python" in first


def _check_report(path: Path | None) -> None:
    """Find out before a long run, not after it, that the report cannot be written."""
    if path is None:
        return
    if path.is_dir():
        msg = f"the report {path} is a folder: name a file"
        raise RunError(msg)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        msg = f"the report {path} cannot be written ({error}): name another file"
        raise RunError(msg) from error


def _write(path: Path, report: dict[str, Any]) -> None:
    """Write the report whole or not at all; a failure does not change the exit status."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(report, file, indent=2)
                file.write("\n")
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        print(f"qwen-mfa: the report {path} was not written: {error}", file=sys.stderr)
