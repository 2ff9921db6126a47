"""Run ``swift test`` on swift_pkg; fail where Swift is expected and missing."""

from __future__ import annotations

import argparse
import os
import subprocess

from build_tools.native.portable import PACKAGE
from build_tools.support.console import say
from build_tools.support.errors import ToolError
from build_tools.support.paths import ROOT
from build_tools.support.process import capture

HELP = "run swift_pkg's own tests"
EXPECTED = "QWEN_MFA_EXPECT_SWIFT"


def configure(parser: argparse.ArgumentParser) -> None:
    """Take no arguments."""


def run(args: argparse.Namespace) -> int:  # noqa: ARG001
    """Run the tests with their output as it is."""
    try:
        capture(["swift", "--version"])
    except ToolError as error:
        if os.environ.get(EXPECTED):
            msg = f"{EXPECTED} is set, so Swift must be here, but: {error}"
            raise ToolError(msg) from error
        say("swift test: skipped, there is no Swift toolchain on this machine")
        return 0
    scratch = ROOT / "build" / "swift-test"
    command = ["swift", "test", "--package-path", str(PACKAGE), "--scratch-path", str(scratch)]
    return subprocess.run(command, check=False).returncode
