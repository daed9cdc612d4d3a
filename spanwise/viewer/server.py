"""The server of the page: loopback only, read only, and only the run folders it was given.

No path on disk is ever made from an address: the files of the page are a fixed list, and
runs, steps and trees are named by numbers. A request whose ``Host`` is not this machine is
refused, so that no other site can reach the page through a name of its own. Every address
begins with a token that is drawn anew at each start, so that no other user of this machine
can read what is viewed.
"""

from __future__ import annotations

import atexit
import gzip
import hmac
import json
import os
import re
import secrets
import sys
import tempfile
import warnings
import webbrowser
from collections.abc import Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from spanwise.run.folder import RunError
from spanwise.viewer.folder import ViewedRun, named
from spanwise.viewer.records import as_json

PORT = 8077
"""Port that is tried first."""

SCRIPTS = (
    "text.js", "scales.js", "credit.js", "data.js", "charts.js", "layout.js", "runs.js", "turn.js",
    "tree.js", "tokens.js", "app.js",
)  # fmt: skip
"""The scripts of the page, in the order in which they are loaded."""

STYLE = "style.css"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
_TOKEN_BYTES = 24
_PLACE = re.compile(r"[0-9]{1,18}")
_ROUTE = re.compile(
    r"/api/runs(?:/([0-9]{1,6})/(metrics|steps|trees)(?:/([0-9]{1,9})(?:/([0-9]{1,9}))?)?)?"
)


def page_file(name: str) -> str:
    """The text of one file of the page."""
    return resources.files("spanwise.viewer").joinpath("page", name).read_text(encoding="utf-8")


class NotFound(Exception):
    """There is nothing at this address."""


class Viewer:
    """The answers of the page's server, without the server.

    Of several folders those that cannot be shown are left out, with a warning.

    Raises:
      RunError: if none can be shown, or one is given twice.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.runs: list[ViewedRun] = []
        refused: list[RunError] = []
        for folder in folders:
            try:
                self.runs.append(ViewedRun(folder))
            except RunError as error:
                refused.append(error)
        if refused and not self.runs:
            raise refused[0]
        for error in refused:
            warnings.warn(f"left out: {error}", RuntimeWarning, stacklevel=2)
        self.names = named(self.runs)

    def states(self) -> list[dict[str, Any]]:
        """The state of each run (see ``ViewedRun.state``) under its name."""
        return [
            {**run.state(), "name": name} for run, name in zip(self.runs, self.names, strict=True)
        ]

    def answer(self, address: str) -> str:
        """The JSON at an address under ``/api``.

        Raises:
          NotFound: if there is nothing, or it cannot be shown.
        """
        split = urlsplit(address)
        match = _ROUTE.fullmatch(split.path)
        if match is None:
            raise NotFound(split.path)
        try:
            return as_json(self._value(split, *match.groups()))
        except (RunError, OSError) as error:
            raise NotFound(str(error)) from error

    def _value(
        self, split: SplitResult, run: str | None, what: str, step: str | None, number: str | None
    ) -> Any:
        if run is None:
            return self.states()
        if int(run) >= len(self.runs):
            raise NotFound(f"there is no run {run}")
        folder = self.runs[int(run)]
        if what == "metrics" and step is None:
            start = parse_qs(split.query).get("start", ["0"])[0]
            return folder.metrics(int(start) if _PLACE.fullmatch(start) else 0)
        if what == "steps" and step is None:
            return folder.tree_steps()
        if what == "trees" and step is not None:
            if number is None:
                return folder.trees(int(step))
            return folder.tree(int(step), int(number))
        raise NotFound(split.path)


def serve(viewer: Viewer, port: int | None = None) -> PageServer:
    """A server on the loopback interface; its ``serve_forever`` runs it.

    Args:
      viewer: What it answers with.
      port: None: ``PORT``, or any free one if that is taken. 0: any free one.

    Raises:
      RunError: if the port that was asked for cannot be had.
    """

    class Handler(_Handler):
        answers = viewer

    try:
        return PageServer(("127.0.0.1", PORT if port is None else port), Handler)
    except (OSError, OverflowError) as error:
        if port is not None:
            raise RunError(f"cannot listen on port {port}: {error}; give another --port") from error
        return PageServer(("127.0.0.1", 0), Handler)


def open_page(address: str) -> None:
    """Open an address in the browser where there is a desktop; else do nothing.

    All users of a machine can read the words that a browser is started with, so these name a
    file which this user alone can read, and that leads on.
    """
    desktop = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if not desktop:
        return
    descriptor, name = tempfile.mkstemp(prefix="spanwise-", suffix=".html")
    atexit.register(partial(Path(name).unlink, missing_ok=True))
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(f'<meta http-equiv="refresh" content="0; url={address}">')
    webbrowser.open(Path(name).as_uri())


class PageServer(ThreadingHTTPServer):
    """Serves the page at ``address``, and says nothing at any other."""

    daemon_threads = True

    def __init__(self, at: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.token = secrets.token_urlsafe(_TOKEN_BYTES)
        super().__init__(at, handler)

    @property
    def address(self) -> str:
        """Where the page is, with the token; whoever knows it can read what is viewed."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away before it is answered is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    answers: Viewer
    server_version = "spanwise"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        if not self._asked_for_this_machine():
            self._send(403, "text/plain", b"this page is for this machine alone\n")
            return
        _, token, address = [*self.path.split("/", 2), "", ""][:3]
        assert isinstance(self.server, PageServer)
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._send(403, "text/plain", b"use the whole address that spanwise view printed\n")
            return
        path = urlsplit(address).path
        try:
            if path.startswith("api/"):
                text = self.answers.answer("/" + address)
                self._send(200, "application/json", text.encode("utf-8", errors="replace"))
                return
            name = path or "index.html"
            if name not in ("index.html", STYLE, *SCRIPTS):
                raise NotFound(f"/{path}")
            kind = _TYPES[Path(name).suffix]
            self._send(200, kind, page_file(name).encode("utf-8"))
        except NotFound as error:
            reason = json.dumps({"error": str(error)}).encode("utf-8")
            self._send(404, "application/json", reason)

    def _asked_for_this_machine(self) -> bool:
        """True if ``Host`` is a name of the loopback interface, with this port."""
        assert isinstance(self.server, PageServer)
        port = self.server.server_port
        names = ("127.0.0.1", "localhost")
        return self.headers.get_all("Host") in [[f"{name}:{port}"] for name in names]

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        if len(body) > 4096 and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the user's."""
