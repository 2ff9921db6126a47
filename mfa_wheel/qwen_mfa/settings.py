"""Every environment variable of the package: read here, once a process, and checked.

A value that means nothing is an error that names the variable; nothing is made of it. The engine
reads two of them itself (``QWEN_MFA_NUM_THREADS``, ``QWEN_MFA_ISA``); they are checked here, so
that a typo is told before the engine could be taken for broken.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qwen_mfa.errors import SettingError
from qwen_mfa.once import Once

BACKEND = "QWEN_MFA_BACKEND"
TUNE = "QWEN_MFA_TUNE"
KEEP_PADDING = "QWEN_MFA_KEEP_PADDING"
CACHE_DIR = "QWEN_MFA_CACHE_DIR"
LIBRARY = "QWEN_MFA_LIBRARY"
NUM_THREADS = "QWEN_MFA_NUM_THREADS"
ISA = "QWEN_MFA_ISA"
SHADER_VARIANT = "QWEN_MFA_SHADER_VARIANT"

# What the engine knows by name; whether this processor has it, the engine says.
INSTRUCTION_SETS = ("amx", "avx512bf16", "avx512", "avx2", "neon", "generic")
SHADER_VARIANTS = ("upstream", "plain")
_MAX_DIGITS = 9  # what every C long holds
_SWITCH = {"": False, "0": False, "1": True}
# What becomes of masks that only hide padded keys, where it is not measured.
KEEP, REMOVE = "keep", "remove"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the environment says.

    Attributes:
        backend: Kernels forced or forbidden, as written; `qwen_mfa.selection.override` reads it.
        tunes: Whether kernels may be validated and measured.
        padding: What becomes of masks that only hide padded keys: `KEEP`, `REMOVE`, or what was
            measured to be faster (``""``).
        cache_dir: Where decisions are kept, if not in the system's place for caches.
        library: Another library than the embedded one.
        num_threads: Most threads of the portable engine; 0 leaves it the choice.
        isa: Its instruction set, or ``""``.
        shader_variant: Of the Metal engine's shaders, or ``""``.

    """

    backend: str = ""
    tunes: bool = True
    padding: str = ""
    cache_dir: Path | None = None
    library: Path | None = None
    num_threads: int = 0
    isa: str = ""
    shader_variant: str = ""


def _read() -> Settings:
    return Settings(
        backend=os.environ.get(BACKEND, ""),
        tunes=_switch(TUNE, default="1"),
        padding=_padding(),
        cache_dir=_path(CACHE_DIR),
        library=_path(LIBRARY),
        num_threads=_count(NUM_THREADS),
        isa=_word(ISA, INSTRUCTION_SETS),
        shader_variant=_word(SHADER_VARIANT, SHADER_VARIANTS),
    )


# The settings of this process, read at the first call, which raises `SettingError` where a variable
# has a value that means nothing.
current = Once(_read)


def _switch(variable: str, default: str = "") -> bool:
    text = os.environ.get(variable, "") or default
    if text not in _SWITCH:
        raise SettingError(variable, text, "say 0 or 1")
    return _SWITCH[text]


def _padding() -> str:
    if not os.environ.get(KEEP_PADDING):
        return ""
    return KEEP if _switch(KEEP_PADDING) else REMOVE


def _count(variable: str) -> int:
    text = os.environ.get(variable, "")
    if text and not (
        text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and int(text) > 0
    ):
        raise SettingError(variable, text, "say a whole number above 0")
    return int(text or 0)


def _word(variable: str, known: tuple[str, ...]) -> str:
    text = os.environ.get(variable, "")
    if text and text not in known:
        raise SettingError(variable, text, f"say one of {', '.join(known)}")
    return text


def _path(variable: str) -> Path | None:
    text = os.environ.get(variable, "")
    return Path(text) if text else None
