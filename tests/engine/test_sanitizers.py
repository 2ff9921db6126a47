"""The engine under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.engine_build import compile_test, links, run, usable_isas

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-fsanitize=thread",)
CASES: dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]] = {
    "address": (
        ADDRESS,
        [("random", "77", "30"), ("forward", "3", "20"), ("special",), ("errors",), ("threads",)],
    ),
    "thread": (THREAD, [("callers", "1", "3"), ("random", "9", "8")]),
}


@pytest.mark.parametrize("kind", CASES)
def test_clean(compiler: str, kind: str, tmp_path: Path) -> None:
    flags, modes = CASES[kind]
    if not links(compiler, tmp_path, *flags):
        pytest.skip(f"{compiler} has no run-time library for {flags[0]}")
    program = compile_test(
        compiler, tmp_path / "engine_test", "-O1", "-g", "-DMFA_NO_UNROLL", *flags
    )
    for isa in usable_isas(program):
        for mode in modes:
            # Asking for more memory than there is, is part of what is tested.
            run(
                [str(program), *mode],
                QWEN_MFA_ISA=isa,
                ASAN_OPTIONS="allocator_may_return_null=1",
                TSAN_OPTIONS="halt_on_error=1",
            )
