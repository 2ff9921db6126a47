"""Opens exactly the library that the wheel carries, once, on first use.

Nothing is searched for: not the system, not ``LD_LIBRARY_PATH``. ``QWEN_MFA_LIBRARY=/path`` names
another file on purpose, and fails loudly if that one cannot be used.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_mfa import files, settings
from qwen_mfa.errors import LibraryError, NativeError, SettingError
from qwen_mfa.native.ffi import ffi
from qwen_mfa.native.preflight import MAX_BYTES, why_not_loadable
from qwen_mfa.once import Once, once_property

NATIVE = Path(__file__).parent.parent / "_native"
REINSTALL = "Reinstall qwen-mfa (pip install --force-reinstall --no-deps qwen-mfa)"
CHECK_OVERRIDE = (
    f"Give {settings.LIBRARY} the path of a library built for this machine, or unset it"
)

# Every library has these; what else one can do is asked for by symbol.
REQUIRED = (
    "mfa_create_context",
    "mfa_destroy_context",
    "mfa_create_buffer",
    "mfa_buffer_from_ptr",
    "mfa_buffer_contents",
    "mfa_destroy_buffer",
    "mfa_attention_forward",
    "mfa_attention_encode_mtl",
    "mfa_error_string",
    "mfa_is_device_supported",
    "mfa_get_version",
    "mfa_get_gpu_latency",
)
PORTABLE = ("mfa_portable_attention", "mfa_portable_describe")
ABI_VERSION = (1, 0, 0)
PORTABLE_ABI = "1"
FP32 = 2  # of mfa_precision_t
_MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Library:
    """An opened library.

    Attributes:
        path: The file.
        origin: ``"embedded"`` or ``"override"``.
        manifest: How it was built, as the wheel states it; empty for an override.
        lib: The cffi handle.

    """

    path: Path
    origin: str
    manifest: dict[str, Any]
    lib: Any = field(repr=False)

    @once_property
    def sha256(self) -> str:
        """Return the SHA-256 of the file, in hexadecimal."""
        return _sha256(self.path)

    @once_property
    def is_portable(self) -> bool:
        """Whether the library offers the portable engine's extension."""
        return all(hasattr(self.lib, name) for name in PORTABLE)

    @once_property
    def facts(self) -> dict[str, str]:
        """What the portable engine says of itself (``isa``, ``threads``, …); empty for others.

        ``error`` is there where the environment asks for what this machine cannot do.
        """
        if not self.is_portable:
            return {}
        text = ffi().new("char[]", 1024)
        self.check("mfa_portable_describe", self.lib.mfa_portable_describe(text, 1024))
        words, _, error = _text(text).partition(' error="')
        facts = dict(word.split("=", 1) for word in words.split() if "=" in word)
        return {**facts, "error": error.rstrip('"')} if error else facts

    def peak(self, precision: int = FP32, threads: int = 0) -> float | None:
        """Measure the machine's multiply-add peak in FLOP/s; ``None`` where it cannot be.

        Args:
            precision: Of the factors, as the C interface counts them; sums are FP32.
            threads: At most so many threads; 0 means all that the process may use.

        """
        if not hasattr(self.lib, "mfa_portable_peak_of"):
            return None
        out = ffi().new("double *")
        code = self.lib.mfa_portable_peak_of(precision, threads, out)
        return float(out[0]) if code == 0 else None

    def check(self, function: str, code: int) -> None:
        """Raise `NativeError` with the library's own text unless ``code`` is zero."""
        if code == 0:
            return
        pointer = self.lib.mfa_error_string(code)
        if pointer == ffi().NULL:
            raise NativeError(function, code, "no text")
        try:
            text = _text(pointer)
        finally:
            # The library hands over memory from malloc, see the header.
            _libc().free(ffi().cast("void *", pointer))
        raise NativeError(function, code, text)

    def new_context(self) -> Context:
        """Create a context, destroyed at most once: when dropped or closed."""
        out = ffi().new("mfa_context_t *")
        self.check("mfa_create_context", self.lib.mfa_create_context(out))
        return Context(self.lib, out[0])


class Context:
    """Owner of one native context handle."""

    def __init__(self, lib: Any, handle: Any) -> None:
        self.handle = handle
        # finalize runs at most once, and keeps `lib` alive until then.
        self._release = weakref.finalize(self, lib.mfa_destroy_context, handle)
        # Not at exit: a daemon thread may be in a call that uses it. The system takes it all back.
        self._release.atexit = False

    def close(self) -> None:
        """Destroy the native context now; later calls do nothing."""
        self._release()


def _text(pointer: Any) -> str:
    return bytes(ffi().string(pointer)).decode("utf-8", "replace")


def load() -> Library:
    """Return the library, opening it on the first call.

    Raises:
        LibraryError: It is missing, damaged, foreign, of another version, or lacks a symbol. The
            finding is kept: later calls raise the same without touching the file again.

    """
    found = outcome()
    if isinstance(found, LibraryError):
        raise LibraryError(found.path, found.cause, found.remedy)
    return found


def check_what_is_set() -> None:
    """See that the library and the instruction set that variables name can be used here.

    Raises:
        LibraryError: ``QWEN_MFA_LIBRARY`` names a library that cannot be used.
        SettingError: This processor does not have the instruction set of ``QWEN_MFA_ISA``.

    """
    said = settings.current()
    if said.library is None and not said.isa:
        return
    try:
        error = load().facts.get("error", "")
    except LibraryError:
        if said.library is not None:
            raise
        return  # without a library nobody reads the instruction set
    if error and said.isa:
        usable = error.partition("set one of ")[2].rpartition(", or")[0]
        wanted = f"this machine cannot use it; say one of {usable.replace(',', ', ')}"
        raise SettingError(settings.ISA, said.isa, wanted)


def has_embedded() -> bool:
    """Whether this installation carries a library at all (the ``py3-none-any`` wheel does not)."""
    return (NATIVE / "manifest.json").exists()


def _outcome() -> Library | LibraryError:
    try:
        return _open()
    except LibraryError as error:
        return error


# What came of opening it; whoever wants the library asks `load`.
outcome = Once(_outcome)


def _open() -> Library:
    override = settings.current().library
    if override is not None:
        return _opened(override, "override", {}, CHECK_OVERRIDE)
    if not has_embedded():
        raise LibraryError(
            NATIVE,
            "this wheel carries no native library (it is the MLX-only wheel)",
            "Install a wheel built for this platform to have one; attention works through MLX",
        )
    manifest = _manifest(NATIVE / "manifest.json")
    path = NATIVE / manifest["library"]["file"]
    if not path.exists():
        raise LibraryError(path, "the embedded library is missing", REINSTALL)
    problem = why_not_loadable(path)
    if problem is None and _sha256(path) != manifest["library"]["sha256"]:
        problem = "it is not the file that the wheel was built with (its SHA-256 differs)"
    if problem:
        raise LibraryError(path, problem, REINSTALL)
    return _opened(path, "embedded", manifest, REINSTALL)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(files.read(path, _MAX_MANIFEST_BYTES))
        named = (manifest["library"]["file"], manifest["library"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LibraryError(path, f"the manifest cannot be used ({error!r})", REINSTALL) from error
    if not all(isinstance(x, str) for x in named):
        raise LibraryError(path, "the manifest cannot be used (no texts)", REINSTALL)
    return manifest


def _sha256(path: Path) -> str:
    return hashlib.sha256(files.read(path, MAX_BYTES)).hexdigest()


def _opened(path: Path, origin: str, manifest: dict[str, Any], remedy: str) -> Library:
    # An absolute path: dlopen searches the system for anything without a slash.
    path = path.absolute()
    problem = why_not_loadable(path) if path.exists() else "there is no such file"
    if problem:
        raise LibraryError(path, problem, remedy)
    try:
        # Never unloaded, as dropping `lib` would, last at exit: threads may be running its code.
        lib: Any = ffi().dlopen(str(path), ffi().RTLD_NOW | ffi().RTLD_NODELETE)
    except OSError as error:
        raise LibraryError(path, f"the system cannot load it ({error})", remedy) from error
    missing = [name for name in REQUIRED if not hasattr(lib, name)]
    if missing:
        raise LibraryError(path, f"it lacks the symbol {', '.join(missing)}", remedy)
    numbers = [ffi().new("int *") for _ in range(3)]
    lib.mfa_get_version(*numbers)
    version = tuple(number[0] for number in numbers)
    if version != ABI_VERSION:
        found, wanted = (".".join(map(str, v)) for v in (version, ABI_VERSION))
        raise LibraryError(path, f"its version is {found}, and {wanted} is needed", remedy)
    library = Library(path=path, origin=origin, manifest=manifest, lib=lib)
    if library.is_portable and library.facts.get("abi") != PORTABLE_ABI:
        found = library.facts.get("abi", "none")
        cause = f"its portable interface is version {found}, and {PORTABLE_ABI} is needed"
        raise LibraryError(path, cause, remedy)
    return library


def _libc() -> Any:
    return ffi().dlopen(None)
