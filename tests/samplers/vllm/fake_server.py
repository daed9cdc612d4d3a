"""An HTTP server that answers as vLLM's does, and can die, hang and come back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Quiet(ThreadingHTTPServer):
    """Says nothing of clients that went away."""

    def handle_error(self, request: Any, client_address: Any) -> None: ...


class FakeServer:
    """Says that token 9 and then the end token were drawn.

    Args:
      missing: Paths that it answers with 404.
    """

    def __init__(self, missing: tuple[str, ...] = ()) -> None:
        self.missing = missing
        self.healthy = True
        self.fault: int | None = None
        """Every turn is answered with this status."""
        self.gate = threading.Event()
        """Turns wait until it is set."""
        self.gate.set()
        self.turns: list[dict[str, Any]] = []
        self.weights: list[str] = []
        self.on_weights: Callable[[], int] = lambda: 200
        self._http: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """At the port it had before, if there was one."""
        self._http = _Quiet(("127.0.0.1", self.port), _handler(self))
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def die(self) -> None:
        """No connection is taken any more, and no turn answered."""
        if self._http is not None:
            http, self._http = self._http, None
            http.shutdown()
            http.server_close()

    @property
    def dead(self) -> bool:
        return self._http is None

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path in self.missing:
            return 404, {"detail": "Not Found"}
        if path == "/health":
            return (200 if self.healthy else 503), None
        if path == "/collective_rpc":
            if "method" not in body:
                return 400, {"detail": "Missing 'method' in request body"}
            status = self.on_weights()
            if status == 200:
                self.weights.append(body["args"][0])
            return status, {"results": [None]}
        if "token_ids" not in body:
            return 400, {"detail": "Field required"}
        if "/" in body.get("cache_salt", ""):
            return 400, {"detail": "cache_salt must not contain '/'"}
        self.turns.append(body)
        self.gate.wait(10)
        if self.fault is not None:
            return self.fault, {"error": {"message": "engine fault"}}
        places = [
            {"token_id": token, "logprob": -0.5, "top_logprobs": [{"token_id": 3, "logprob": -1.0}]}
            for token in (9, 0)
        ]
        turn = {"token_ids": [9, 0], "logprobs": {"content": places}, "finish_reason": "stop"}
        return 200, {"choices": [turn]}


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._say({})

        def do_POST(self) -> None:
            self._say(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

        def _say(self, body: Any) -> None:
            status, said = fake.answer(self.path, body or {})
            if fake.dead:
                self.close_connection = True
                return
            content = b"" if said is None else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler
