from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from spanwise.run.folder import RunError
from spanwise.viewer import Viewer, serve
from spanwise.viewer.server import SCRIPTS
from tests.viewer.made_runs import make_run


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    make_run(tmp_path / "run", steps=40)
    (tmp_path / "secret.txt").write_text("secret")
    with serve(Viewer([tmp_path / "run"]), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def asked(
    port: int, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def test_the_page_and_its_data_are_served(port: int) -> None:
    status, headers, body = asked(port, "/")
    assert status == 200 and b"spanwise" in body and headers["Content-Type"].startswith("text/html")
    for name in SCRIPTS:
        assert asked(port, f"/{name}")[0] == 200
    states = json.loads(asked(port, "/api/runs")[2])
    assert states[0]["name"] == "run" and states[0]["summary"]["seed"] == 0
    assert json.loads(asked(port, "/api/runs/0/steps")[2]) == [1, 2, 20]
    assert len(json.loads(asked(port, "/api/runs/0/trees/2")[2])) == 3
    assert json.loads(asked(port, "/api/runs/0/trees/2/1")[2])["number"] == 1
    assert json.loads(asked(port, "/api/runs/0/metrics?start=0")[2])["start"] == 0


def test_long_answers_are_packed_where_that_is_understood(port: int) -> None:
    plain = asked(port, "/api/runs/0/metrics")[2]
    status, headers, body = asked(port, "/api/runs/0/metrics", **{"Accept-Encoding": "gzip"})
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
def test_addresses_that_lead_elsewhere_are_refused(port: int, path: str) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        answer = raw.recv(65536)
    assert answer.split()[1] in (b"404", b"400")
    assert b"secret" not in answer.replace(path.encode(), b"") and b"root:" not in answer


def test_a_damaged_start_reads_from_the_beginning(port: int) -> None:
    for start in ("x", "-5", "1e3", "9" * 30, "9" * 5000, "²"):
        path = f"/api/runs/0/metrics?start={quote(start)}"
        assert json.loads(asked(port, path)[2])["start"] == 0


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}.evil",
     "0.0.0.0:{port}", "", "localhost:{port}@evil.example"],
)  # fmt: skip
def test_other_hosts_are_refused(port: int, host: str) -> None:
    status, _, body = asked(port, "/api/runs", Host=host.format(port=port))
    assert status == 403 and b"run" not in body


def test_two_hosts_are_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        own = f"127.0.0.1:{port}"
        raw.sendall(f"GET / HTTP/1.1\r\nHost: {own}\r\nHost: evil.example\r\n\r\n".encode())
        assert raw.recv(4096).split()[1] == b"403"


def test_localhost_is_this_machine(port: int) -> None:
    assert asked(port, "/api/runs", Host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_it_is_read_only(port: int, method: str) -> None:
    assert asked(port, "/api/runs", method=method)[0] == 501


def test_every_answer_forbids_other_sources(port: int) -> None:
    for path in ("/", "/app.js", "/api/runs", "/nothing"):
        headers = asked(port, path)[1]
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
