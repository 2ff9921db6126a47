"""A fork while another thread is in its first use of this package."""

from __future__ import annotations

import pytest

from tests.qwen_mfa.conftest import python

IMPORTING = """
import os, sys, threading, time
from qwen_mfa.firstuse import first_use
inside = threading.Event()
def use():
    with first_use:
        inside.set()
        time.sleep(0.2)
        import logging, json
threading.Thread(target=use).start()
inside.wait()
child = os.fork()
import logging, json
logging.getLogger("x").debug("the lock can be taken")
if child == 0:
    print("answered", flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_a_fork_waits_for_the_imports_of_a_first_use_and_says_nothing() -> None:
    """Without the wait the child hangs in the import; what is imported meanwhile has hooks too."""
    done = python(IMPORTING, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "answered\n", "")


PARSING = """
import os, sys, threading, time
from cffi import cparser
from qwen_mfa.native.ffi import ffi
lock = {"types": ffi()._lock, "parser": cparser.lock}[sys.argv[1]]
inside = threading.Event()
def use():
    with lock:
        inside.set()
        time.sleep(0.2)
threading.Thread(target=use).start()
inside.wait()
child = os.fork()
ffi().new("short[3]")
if child == 0:
    print("answered", flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.parametrize("lock", ["types", "parser"])
def test_a_fork_waits_for_the_locks_of_cffi(lock: str) -> None:
    done = python(PARSING, lock)
    assert (done.returncode, done.stdout, done.stderr) == (0, "answered\n", "")
