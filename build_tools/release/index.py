"""A package index on loopback for rehearsals: pypiserver, with what it lacks in front of it.

pypiserver takes uploads and serves files with their hashes. The index that users meet also says
which Python a file needs (PEP 503), what was yanked (PEP 592), and its files can be changed in
storage: those three are added to its answers here.
"""

from __future__ import annotations

import html
import re
import threading
import zipfile
from dataclasses import dataclass, field
from email.parser import BytesHeaderParser
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pypiserver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

HOST = "127.0.0.1"
REPLACED = ("content-length", "accept-ranges")
LINK = re.compile(r'<a href="(?P<href>[^"]+)">(?P<file>[^<]+)</a>')


class _Server(ThreadingMixIn, WSGIServer):
    """One thread a request: installers open several connections."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Keeps requests off the console; the rehearsal reports what matters."""

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


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
    _server: WSGIServer | None = field(default=None, init=False, repr=False)

    @property
    def upload_url(self) -> str:
        """Where files are uploaded to."""
        assert self._server is not None, "the index is not open"  # noqa: S101 - misuse by us
        return f"http://{HOST}:{self._server.server_port}/"

    @property
    def url(self) -> str:
        """What installers are given as their index."""
        return f"{self.upload_url}simple/"

    def __enter__(self) -> Self:
        """Listen on a free port of the loopback interface."""
        self.folder.mkdir(parents=True, exist_ok=True)
        app = pypiserver.app(
            roots=[self.folder],
            authenticate=[],
            password_file=".",  # noqa: S106 - pypiserver's way to say that there is none
            disable_fallback=True,
            hash_algo="sha256",
        )
        self._server = make_server(
            HOST, 0, _Front(app, self), server_class=_Server, handler_class=_Quiet
        )
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


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What the application said: status, headers, body."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes


class _Front:
    """A WSGI application around pypiserver's."""

    def __init__(self, app: Callable[..., Iterable[bytes]], index: Index) -> None:
        self._app = app
        self._index = index

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        answer = self._ask(environ)
        path = str(environ.get("PATH_INFO", ""))
        body = answer.body
        if answer.status.startswith("200") and path.startswith("/simple/"):
            body = LINK.sub(self._link, body.decode("utf-8")).encode("utf-8")
        elif answer.status.startswith("200") and path.startswith("/packages/"):
            body = self._index.tampered.get(path.rpartition("/")[2], body)
        kept = [(k, v) for k, v in answer.headers if k.lower() not in REPLACED]
        start_response(answer.status, [*kept, ("Content-Length", str(len(body)))])
        return [body]

    def _ask(self, environ: dict[str, Any]) -> _Answer:
        said: list[Any] = []
        # Whole answers only: ranges and conditions would be judged before the body is changed, and
        # the server leaves the body of a HEAD request out by itself.
        for name in ("HTTP_RANGE", "HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH"):
            environ.pop(name, None)
        if environ["REQUEST_METHOD"] == "HEAD":
            environ["REQUEST_METHOD"] = "GET"
        parts = self._app(environ, lambda status, headers, *_: said.extend((status, headers)))
        try:
            body = b"".join(parts)
        finally:
            close = getattr(parts, "close", None)
            if close is not None:
                close()
        return _Answer(status=said[0], headers=said[1], body=body)

    def _link(self, match: re.Match[str]) -> str:
        name = html.unescape(match["file"])
        more = ""
        needs = requires_python(self._index.folder / name)
        if needs:
            more += f' data-requires-python="{html.escape(needs)}"'
        if name in self._index.yanked:
            more += f' data-yanked="{html.escape(self._index.yanked[name])}"'
        return f'<a href="{match["href"]}"{more}>{match["file"]}</a>'


def requires_python(path: Path) -> str:
    """Return ``Requires-Python`` of the wheel at ``path``, "" for other files and without one."""
    if path.suffix != ".whl" or not path.is_file():
        return ""
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith(".dist-info/METADATA")), None)
        if name is None:
            return ""
        return BytesHeaderParser().parsebytes(archive.read(name)).get("Requires-Python", "")
