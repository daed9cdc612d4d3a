from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from spanwise.run.folder import RunError
from spanwise.viewer import Viewer, serve
from spanwise.viewer.server import SCRIPTS, PageServer, open_page
from tests.viewer.made_runs import make_run


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    make_run(tmp_path / "run", steps=40)
    (tmp_path / "secret.txt").write_text("secret")
    with serve(Viewer([tmp_path / "run"]), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def asked(
    server: PageServer, path: str, method: str = "GET", *, token: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """The answer to a request for a path behind the token."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    path = f"/{server.token if token is None else token}{path}"
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def test_the_page_and_its_data_are_served(server: PageServer) -> None:
    status, headers, body = asked(server, "/")
    assert status == 200 and b"spanwise" in body and headers["Content-Type"].startswith("text/html")
    for name in SCRIPTS:
        assert asked(server, f"/{name}")[0] == 200
    states = json.loads(asked(server, "/api/runs")[2])
    assert states[0]["name"] == "run" and states[0]["summary"]["seed"] == 0
    assert json.loads(asked(server, "/api/runs/0/steps")[2]) == [1, 2, 20]
    assert len(json.loads(asked(server, "/api/runs/0/trees/2")[2])) == 3
    assert json.loads(asked(server, "/api/runs/0/trees/2/1")[2])["number"] == 1
    assert json.loads(asked(server, "/api/runs/0/metrics?start=0")[2])["start"] == 0


def test_long_answers_are_packed_where_that_is_understood(server: PageServer) -> None:
    plain = asked(server, "/api/runs/0/metrics")[2]
    status, headers, body = asked(server, "/api/runs/0/metrics", **{"Accept-Encoding": "gzip"})
    assert status == 200 and headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == plain and len(body) < len(plain)


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e/secret.txt",
        "/....//secret.txt",
        "//etc/passwd",
        "/etc/passwd",
        "/page/../../server.py",
        "/index.html/../server.py",
        "/api/runs/0/trees/../../../secret.txt",
        "/api/runs/0/metrics/../secret.txt",
        "/api/runs/0/trees/1%00",
        "/api/runs/0/trees/-1",
        "/api/runs/-1/steps",
        "/api/runs/7/steps",
        "/api/runs/0/trees/1/99",
        "/api/runs/0/trees/99999",
        "/api/runs/0/trees/²",
        "/api/runs/0/config.json",
        "/api/runs/0",
        "/api/",
        "/config.json",
        "/metrics.jsonl",
        "/style.css/",
        "/ style.css",
        "file:///etc/passwd",
    ],
)
def test_addresses_that_lead_elsewhere_are_refused(server: PageServer, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as raw:
        host = f"127.0.0.1:{server.server_port}"
        raw.sendall(f"GET /{server.token}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = raw.recv(65536)
    assert answer.split()[1] in (b"404", b"400", b"403")
    assert b"secret" not in answer.replace(path.encode(), b"") and b"root:" not in answer


def test_a_damaged_start_reads_from_the_beginning(server: PageServer) -> None:
    for start in ("x", "-5", "1e3", "9" * 30, "9" * 5000, "²"):
        path = f"/api/runs/0/metrics?start={quote(start)}"
        assert json.loads(asked(server, path)[2])["start"] == 0


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil",
     "0.0.0.0:{port}", "", "localhost:{port}@evil.example"],
)  # fmt: skip
def test_other_hosts_are_refused(server: PageServer, host: str) -> None:
    status, _, body = asked(server, "/api/runs", Host=host.format(port=server.server_port))
    assert status == 403 and b"run" not in body


def test_two_hosts_are_refused(server: PageServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as raw:
        own = f"127.0.0.1:{server.server_port}"
        raw.sendall(
            f"GET /{server.token}/ HTTP/1.1\r\nHost: {own}\r\nHost: evil.example\r\n\r\n".encode()
        )
        assert raw.recv(4096).split()[1] == b"403"


def test_localhost_is_this_machine(server: PageServer) -> None:
    assert asked(server, "/api/runs", Host=f"localhost:{server.server_port}")[0] == 200


def test_nothing_is_said_without_the_token(server: PageServer) -> None:
    token = server.token
    others = ["", "x", token[:-1], token + "x", token.swapcase(), "%20" + token, "²", "a" * 10_000]
    for other in others:
        for path in ("/", "/api/runs", "/app.js", ""):
            status, headers, body = asked(server, path, token=quote(other, safe="%"))
            assert status == 403 and b"whole address" in body and len(body) < 100
            assert not any(token in value for value in headers.values())
    assert asked(server, "/")[0] == 200


def test_each_start_draws_its_token_anew(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    viewer = Viewer([tmp_path / "run"])
    with serve(viewer, 0) as one, serve(viewer, 0) as other:
        assert one.token != other.token and min(len(one.token), len(other.token)) >= 32
        assert one.address == f"http://127.0.0.1:{one.server_port}/{one.token}/"


def test_no_other_user_reads_the_token_among_the_words_of_the_browser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    open_page("http://127.0.0.1:1/TOKEN/")
    file = Path(urlsplit(opened[0]).path)
    assert "TOKEN" not in opened[0] and "url=http://127.0.0.1:1/TOKEN/" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    file.unlink()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_it_is_read_only(server: PageServer, method: str) -> None:
    assert asked(server, "/api/runs", method=method)[0] == 501


def test_every_answer_forbids_other_sources(server: PageServer) -> None:
    for path in ("/", "/app.js", "/api/runs", "/nothing"):
        headers = asked(server, path)[1]
        assert headers["Content-Security-Policy"].startswith(
            "default-src 'none'; script-src 'self'"
        )
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers


def test_it_listens_on_the_loopback_interface_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with serve(Viewer([tmp_path / "run"]), 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert server.socket.getsockname()[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    viewer = Viewer([tmp_path / "run"])
    with serve(viewer, 0) as server, pytest.raises(RunError, match="give another --port"):
        serve(viewer, server.server_port)


def test_no_script_of_the_page_makes_markup_from_text() -> None:
    page = Path(__file__).parents[2] / "spanwise/viewer/page"
    forbidden = (
        *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser"),
        *("eval(", "Function(", "http:/", "https:/"),
    )
    for path in page.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not [word for word in forbidden if word in text], path.name
    assert {path.name for path in page.iterdir()} == {*SCRIPTS, "index.html", "style.css"}
