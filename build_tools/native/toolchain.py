"""What the build machine must offer, checked before anything is built.

Every missing thing is named together with what gets it, all at once.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from build_tools.support import process
from build_tools.support.errors import ToolchainError, ToolError

SWIFT_HINT = (
    "Install Swift (swift.org/install; macOS: Xcode 16 or newer from the App Store), and see that "
    "its usr/bin is on PATH."
)
XCODE_HINT = (
    "Install Xcode from the App Store, then run "
    "`sudo xcode-select --switch /Applications/Xcode.app` and `sudo xcodebuild -license accept`."
)


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """The tools of this machine, as they name themselves."""

    swift: str
    facts: Mapping[str, str]


def check(requires: Mapping[str, str]) -> Toolchain:
    """Hold this machine against ``requires`` (``swift``, ``macos``, ``xcode``: least versions).

    ``macos`` or ``xcode`` among the requirements means that only macOS will do.

    Raises:
        ToolchainError: Lists everything that is missing.

    """
    missing: list[str] = []
    facts: dict[str, str] = {"machine": platform.machine(), "system": platform.system()}
    if "macos" in requires or "xcode" in requires:
        _check_macos(requires, facts, missing)
    swift = _check_swift(requires.get("swift", "0"), facts, missing)
    if missing:
        listed = "\n".join(f"  - {line}" for line in missing)
        msg = f"this machine cannot build the library:\n{listed}"
        raise ToolchainError(msg)
    return Toolchain(swift=swift, facts=facts)


def version(text: str) -> tuple[int, ...]:
    """Return the first dotted number in ``text`` as a tuple: "Xcode 16.2" gives (16, 2)."""
    match = re.search(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else (0,)


def _check_swift(least: str, facts: dict[str, str], missing: list[str]) -> str:
    swift = shutil.which("swift")
    if swift is None:
        missing.append(f"Swift {least} or newer: `swift` is not on PATH. {SWIFT_HINT}")
        return ""
    try:
        text = process.capture([swift, "--version"])
    except ToolError as error:
        missing.append(f"Swift {least} or newer: {error}. {SWIFT_HINT}")
        return swift
    match = re.search(r"Swift version (\S+)", text)
    found = match.group(1) if match else "of an unknown version"
    facts["swift"] = " ".join(text.split())
    if version(found) < version(least):
        missing.append(f"Swift {least} or newer: {swift} is {found}. {SWIFT_HINT}")
    return swift


def _check_macos(requires: Mapping[str, str], facts: dict[str, str], missing: list[str]) -> None:
    if platform.system() != "Darwin":
        missing.append(
            f"macOS {requires.get('macos', '')}: this is {platform.system()}, which has no Metal. "
            "Build with `--engine portable` here, or run this on a Mac."
        )
        return
    if platform.machine() != "arm64":
        missing.append("Apple silicon: this is a Mac with an Intel processor.")
    facts["macos"] = platform.mac_ver()[0]
    if version(facts["macos"]) < version(requires.get("macos", "0")):
        missing.append(
            f"macOS {requires['macos']} or newer: this is {facts['macos']}. "
            "Update it in System Settings, General, Software Update."
        )
    _check_xcode(requires.get("xcode", "0"), facts, missing)


def _check_xcode(least: str, facts: dict[str, str], missing: list[str]) -> None:
    try:
        facts["xcode"] = " ".join(process.capture(["xcodebuild", "-version"]).split())
    except ToolError:
        missing.append(f"Xcode {least} or newer: there is no usable Xcode. {XCODE_HINT}")
        return
    if version(facts["xcode"]) < version(least):
        missing.append(f"Xcode {least} or newer: this is {facts['xcode']}. {XCODE_HINT}")
    try:
        facts["sdk"] = process.capture(["xcrun", "--sdk", "macosx", "--show-sdk-version"])
    except ToolError:
        missing.append(f"the macOS SDK: `xcrun --sdk macosx` finds none. {XCODE_HINT}")
