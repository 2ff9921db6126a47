"""A package index on loopback for rehearsals: what publishers and installers ask of one, no more.

Index servers from PyPI neither yank nor serve another file than they were given (pypiserver), or
bring a web framework and a database (devpi), and this is all that it takes.
Files are taken as PyPI takes them; the listing gives each file's hash, the Python that it needs
(PEP 503) and what was yanked (PEP 592). Files can be changed in storage, as an attacker would.
"""

from __future__ import annotations

import html
import re
import subprocess
import threading
import zipfile
from dataclasses import dataclass, field
from email.parser import BytesHeaderParser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename

from build_tools.support.files import sha256, write_bytes
from tests.build_tools.rehearsal import installers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

HOST = "127.0.0.1"
BOUNDARY = re.compile(r'boundary="?([^";]+)')
FILENAME = re.compile(rb'name="content"; *filename="([^"/\\]+)"')


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
    _server: ThreadingHTTPServer | None = field(default=None, init=False, repr=False)

    @property
    def upload_url(self) -> str:
        """Where files are uploaded to."""
        assert self._server is not None, "the index is not open; use it in a with statement"
        return f"http://{HOST}:{self._server.server_port}/"

    @property
    def url(self) -> str:
        """What installers are given as their index."""
        return f"{self.upload_url}simple/"

    def __enter__(self) -> Self:
        """Listen on a free port of the loopback interface."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handler = type("Handler", (_Handler,), {"index": self})
        self._server = ThreadingHTTPServer((HOST, 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def publish(self, paths: Iterable[Path]) -> installers.Outcome:
        """Upload ``paths`` as a publisher does."""
        command = [
            installers.uv(), "publish", "--publish-url", self.upload_url,
            "--trusted-publishing", "never",
            "--username", "rehearsal", "--password", "rehearsal", *map(str, paths),
        ]  # fmt: skip
        done = subprocess.run(
            command,
            env=installers.variables(self.url),
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return installers.Outcome(status=done.returncode, text=done.stdout)

    def listing(self, project: str) -> str:
        """Return the page of ``project``, "" when there are no files of it."""
        paths = [path for path in sorted(self.folder.iterdir()) if _project(path) == project]
        return "".join(f"{self._link(path)}<br>\n" for path in paths)

    def _link(self, path: Path) -> str:
        needs, reason = requires_python(path), self.yanked.get(path.name)
        marks = f' data-requires-python="{html.escape(needs)}"' if needs else ""
        marks += f' data-yanked="{html.escape(reason)}"' if reason is not None else ""
        return f'<a href="/files/{path.name}#sha256={sha256(path)}"{marks}>{path.name}</a>'


class _Handler(BaseHTTPRequestHandler):
    index: Index

    def do_GET(self) -> None:
        parts = PurePosixPath(self.path.partition("?")[0]).parts[1:]
        content = b""
        if len(parts) == 2 and parts[0] == "simple":
            content = self.index.listing(canonicalize_name(parts[1])).encode()
        elif len(parts) == 2 and parts[0] == "files":
            path = self.index.folder / parts[1]
            stored = path.read_bytes() if path.is_file() else b""
            content = self.index.tampered.get(parts[1], stored)
        kind = "text/html" if parts[:1] == ("simple",) else "application/octet-stream"
        self._answer(HTTPStatus.OK if content else HTTPStatus.NOT_FOUND, content, kind)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        boundary = BOUNDARY.search(self.headers.get("Content-Type", ""))
        body = self._body()
        for part in body.split(b"--" + boundary[1].encode()) if boundary else ():
            head, _, content = part.partition(b"\r\n\r\n")
            if name := FILENAME.search(head):
                path = self.index.folder / name[1].decode("ascii", "replace")
                if path.exists():
                    self._answer(HTTPStatus.CONFLICT, b"a published file is never replaced")
                    return
                write_bytes(path, content.removesuffix(b"\r\n"))
        self._answer(HTTPStatus.OK, b"")

    def log_message(self, *args: Any) -> None:
        """Say nothing; the rehearsal reports what matters."""

    def _answer(self, status: HTTPStatus, content: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)


def _project(path: Path) -> str:
    try:
        if path.suffix == ".whl":
            return parse_wheel_filename(path.name)[0]
        return parse_sdist_filename(path.name)[0]
    except ValueError:
        return ""


def requires_python(path: Path) -> str:
    """Return ``Requires-Python`` of the wheel at ``path``, "" for other files and without one."""
    if path.suffix != ".whl":
        return ""
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith(".dist-info/METADATA")), None)
        if name is None:
            return ""
        return BytesHeaderParser().parsebytes(archive.read(name)).get("Requires-Python", "")
