"""A package index on loopback for rehearsals: pypiserver, with what it lacks in front of it.

pypiserver takes uploads and serves files with their hashes. The index that users meet also says
which Python a file needs (PEP 503), what was yanked (PEP 592), and its files can be changed in
storage: those three are added to its answers here.
"""

from __future__ import annotations

import html
import http.client
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import dataclass, field
from email.parser import BytesHeaderParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from build_tools.support.errors import ToolError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

HOST = "127.0.0.1"
LINK = re.compile(r'<a href="(?P<href>[^"]+)">(?P<file>[^<]+)</a>')
STARTING = 60.0  # seconds
# Whole answers only: ranges and conditions would be judged before the body is changed.
PASSED_ON = ("content-type", "authorization")
PASSED_BACK = ("content-type", "location")


@dataclass(kw_only=True)
class Index:
    """Serves the files in ``folder`` at ``url`` while it is open (a context manager).

    Attributes:
        folder: Where uploads are kept.
        yanked: Reason by file name.
        tampered: Bytes by file name that are served instead of what was uploaded; the listing keeps
            the hash of what was uploaded.

    """

    folder: Path
    yanked: dict[str, str] = field(default_factory=dict)
    tampered: dict[str, bytes] = field(default_factory=dict)
    backend: int = field(default=0, init=False)
    _server: ThreadingHTTPServer | None = field(default=None, init=False, repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def upload_url(self) -> str:
        """Where files are uploaded to."""
        if self._server is None:
            msg = "the index is not open; use it in a with statement"
            raise ToolError(msg)
        return f"http://{HOST}:{self._server.server_port}/"

    @property
    def url(self) -> str:
        """What installers are given as their index."""
        return f"{self.upload_url}simple/"

    def __enter__(self) -> Self:
        """Start pypiserver, and listen in front of it, on free ports of the loopback interface.

        Raises:
            ToolError: pypiserver does not start.

        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.backend = _free_port()
        command = [
            sys.executable, "-m", "pypiserver", "run", "--interface", HOST,
            "--port", str(self.backend), "--authenticate", ".", "--passwords", ".",
            "--disable-fallback", "--hash-algo", "sha256", str(self.folder),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._wait()
            self._server = ThreadingHTTPServer((HOST, 0), type("Front", (_Front,), {"index": self}))
        except BaseException:
            self._stop()
            raise
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop both."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self._stop()

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Answer:
        """Return pypiserver's answer, with what it lacks."""
        connection = http.client.HTTPConnection(HOST, self.backend, timeout=120)
        try:
            connection.request(method, path, body=body, headers=headers)
            said = connection.getresponse()
            found = Answer(status=said.status, headers=said.getheaders(), body=said.read())
        finally:
            connection.close()
        if found.status != http.client.OK:
            return found
        if path.startswith("/simple/"):
            text = LINK.sub(self._link, found.body.decode("utf-8"))
            return Answer(status=found.status, headers=found.headers, body=text.encode("utf-8"))
        content = self.tampered.get(path.rpartition("/")[2], found.body)
        return Answer(status=found.status, headers=found.headers, body=content)

    def _link(self, match: re.Match[str]) -> str:
        name = html.unescape(match["file"])
        more = ""
        needs = requires_python(self.folder / name)
        if needs:
            more += f' data-requires-python="{html.escape(needs)}"'
        if name in self.yanked:
            more += f' data-yanked="{html.escape(self.yanked[name])}"'
        return f'<a href="{match["href"]}"{more}>{match["file"]}</a>'

    def _wait(self) -> None:
        deadline = time.monotonic() + STARTING
        while not self._answers():
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                msg = "pypiserver does not start; run `python -m pypiserver run` to see why"
                raise ToolError(msg)
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self.ask("GET", "/health", {}, None)
        except OSError:
            return False
        return True

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server said."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class _Front(BaseHTTPRequestHandler):
    """Passes requests on to ``index``, one connection each."""

    index: Index

    def do_GET(self) -> None:
        self._pass_on("GET")

    def do_HEAD(self) -> None:
        self._pass_on("GET", send_body=False)

    def do_POST(self) -> None:
        self._pass_on("POST")

    def log_message(self, *args: Any) -> None:
        """Say nothing; the rehearsal reports what matters."""

    def _pass_on(self, method: str, *, send_body: bool = True) -> None:
        body = self._body() if method == "POST" else None
        kept = {k: v for k, v in self.headers.items() if k.lower() in PASSED_ON}
        answer = self.index.ask(method, self.path, kept, body)
        self.send_response(answer.status)
        for name, value in answer.headers:
            if name.lower() in PASSED_BACK:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if send_body:
            self.wfile.write(answer.body)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def requires_python(path: Path) -> str:
    """Return ``Requires-Python`` of the wheel at ``path``, "" for other files and without one."""
    if path.suffix != ".whl" or not path.is_file():
        return ""
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith(".dist-info/METADATA")), None)
        if name is None:
            return ""
        return BytesHeaderParser().parsebytes(archive.read(name)).get("Requires-Python", "")
