"""The engine under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

By one compiler, clang where it is there: what is wrong is so in the sources, and gcc takes twice as
long to build with sanitizers.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.engine.engine_build import STAND_IN_FOR_AMX, find_clang, links, run, usable_isas

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.engine_build import Builder

Mode = tuple[str, ...]

ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-fsanitize=thread",)
# Flags, what every instruction set runs, and what is the same for all: threads, and forks.
CASES: dict[str, tuple[Mode, list[Mode], Mode]] = {
    "address": (
        ADDRESS,
        [("random", "77", "30"), ("forward", "3", "20"), ("special",), ("errors",)],
        ("threads",),
    ),
    "thread": (THREAD, [("random", "9", "12")], ("callers", "1", "3")),
}


def compiler_for(flags: Mode, folder: Path) -> str:
    for path in (find_clang(), shutil.which("gcc")):
        if path is not None and links(path, folder, *flags):
            return path
    return pytest.skip(f"no compiler has a run-time library for {flags[0]}")


@pytest.mark.parametrize("kind", CASES)
def test_clean(builder: Builder, kind: str, tmp_path: Path) -> None:
    flags, modes, once = CASES[kind]
    compiler = compiler_for(flags, tmp_path)
    all_flags = ("-O1", "-g", "-DMFA_NO_UNROLL", STAND_IN_FOR_AMX, *flags)
    program = builder.link(compiler, "engine_test.c", tmp_path / "engine_test", *all_flags)
    isas = usable_isas(program)
    for isa, mode in [*((isa, mode) for isa in isas for mode in modes), (isas[0], once)]:
        # Asking for more memory than there is, is part of what is tested.
        run(
            [str(program), *mode],
            QWEN_MFA_ISA=isa,
            ASAN_OPTIONS="allocator_may_return_null=1",
            TSAN_OPTIONS="halt_on_error=1",
        )
