"""The retriever client is tried against a real server on this machine."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from spanwise.tools.base import ToolError, ToolTimeout
from spanwise.tools.search import Document, DocumentIndex, RetrieverClient, SearchTool, is_loopback

Serve = Callable[[Callable[[dict[str, Any]], tuple[int, bytes]]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Answer POSTs by a function from the JSON asked to status and body; gives the URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[dict[str, Any]], tuple[int, bytes]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = self.rfile.read(int(self.headers["Content-Length"]))
                status, body = answer({"path": self.path, **json.loads(asked)})
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the client may have hung up
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/retrieve"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def in_json(reply: Any) -> Callable[[dict[str, Any]], tuple[int, bytes]]:
    return lambda _: (200, json.dumps(reply).encode())


def test_the_wire_format(serve: Serve):
    asked: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> tuple[int, bytes]:
        asked.append(request)
        hits = [
            {"document": {"id": "7", "contents": '"Ada Beck"\nAda was\nborn.'}, "score": 0.9},
            {"document": {"title": "Leo Dale", "text": "Leo."}, "score": 0.4},
            {"contents": "Ida Cole"},
        ]
        return 200, json.dumps({"result": [hits]}).encode()

    client = RetrieverClient(url=serve(answer), num_documents=2)
    found = asyncio.run(client("mother of Ada"))
    assert asked == [
        {"path": "/retrieve", "queries": ["mother of Ada"], "topk": 2, "return_scores": True}
    ]
    assert found == (
        Document(title="Ada Beck", text="Ada was\nborn."),
        Document(title="Leo Dale", text="Leo."),
    )


def test_no_hits_are_no_documents(serve: Serve):
    assert RetrieverClient(url=serve(in_json({"result": [[]]}))).call("q") == ()


@pytest.mark.parametrize(
    "reply",
    [
        [], {}, None, 3, {"result": []}, {"result": "x"}, {"result": [None]}, {"result": [[3]]},
        {"result": [[None]]}, {"result": [[{"document": 3}]]}, {"result": [[{"score": 1}]]},
        {"result": [[{"document": {"contents": 5}}]]}, {"result": [[{"document": {"title": "t"}}]]},
        {"result": [[{"document": {"title": 3, "text": "x"}}]]}, {"result": {"0": 1}},
    ],
)  # fmt: skip
def test_json_of_another_shape(serve: Serve, reply: Any):
    with pytest.raises(ToolError, match="did not answer in JSON of the shape"):
        RetrieverClient(url=serve(in_json(reply))).call("q")


PASSAGE = "The mill stands at the river, where two roads meet. " * 6 + "Nora Vale built it."
TITLED = Document(title="The mill", text=PASSAGE)
UNTITLED = Document(title="", text=PASSAGE)


@pytest.mark.parametrize(
    ("hit", "document"),
    [
        ({"contents": PASSAGE}, UNTITLED),
        (PASSAGE, UNTITLED),
        ({"title": None, "text": PASSAGE}, UNTITLED),
        ({"title": "The mill", "contents": PASSAGE}, TITLED),
        ({"title": "The mill", "contents": f'"The mill"\n{PASSAGE}'}, TITLED),
        ({"title": "The mill", "text": PASSAGE}, TITLED),
        ({"contents": f"The mill\n{PASSAGE}"}, TITLED),
        ({"contents": f"{PASSAGE}\nEnd."}, Document(title="", text=f"{PASSAGE}\nEnd.")),
    ],
)
def test_documents_with_and_without_titles(serve: Serve, hit: Any, document: Document):
    hits = [hit, {"document": hit, "score": 0.5}, [hit, 0.5]]
    for reply in ({"result": [hits]}, {"result": hits}, [hits], hits, [[hits], [[0.5, 0.4, 0.3]]]):
        assert RetrieverClient(url=serve(in_json(reply))).call("q") == (document,) * 3


def test_not_json(serve: Serve):
    for body in (b"<html>", b"", b"\xff\xfe\x00"):
        with pytest.raises(ToolError, match="did not answer in JSON"):
            RetrieverClient(url=serve(lambda _, body=body: (200, body))).call("q")


def test_http_error(serve: Serve):
    with pytest.raises(ToolError, match=r"gives no answer: HTTPStatusError: .*503"):
        RetrieverClient(url=serve(lambda _: (503, b"busy"))).call("q")


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", b"SSH-2.0-x\r\n", b""]
)
def test_reply_cut_short_or_not_http(reply: bytes):
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(reply)
        connection.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with pytest.raises(ToolError, match="gives no answer"):
        RetrieverClient(url=f"http://127.0.0.1:{listener.getsockname()[1]}/").call("q")
    thread.join()
    listener.close()


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ToolError, match=f"127.0.0.1:{port}/retrieve gives no answer"):
        RetrieverClient(url=f"http://127.0.0.1:{port}/retrieve").call("q")


def test_a_server_that_hangs_meets_the_deadline(serve: Serve):
    release = threading.Event()

    def hang(_: dict[str, Any]) -> tuple[int, bytes]:
        release.wait(20)
        return 200, b"{}"

    client = RetrieverClient(url=serve(hang), deadline_s=0.2)
    with pytest.raises(ToolError):  # by the socket or by the tool, whichever is first
        asyncio.run(client("q"))
    release.set()


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://h/x", "file:///etc/hosts", "http://"])
def test_addresses_that_are_none(url: str):
    with pytest.raises(ValueError, match="must look like"):
        RetrieverClient(url=url)


def document(title: str, text: str) -> Document:
    return Document(title=title, text=text)


LIBRARY = (
    document("Ada Beck", "the mother of Ada Beck is Ida Cole ."),
    document("Ada Beck", "the rival of Ada Beck is Leo Dale ."),
    document("Leo Dale", "the mother of Leo Dale is Ada Beck ."),
    document("Leo Cole", "the mother of Leo Cole is Ada Beck ."),
)


def test_titles_break_what_texts_leave_tied():
    index = DocumentIndex(LIBRARY)
    assert index.search("mother of Ada Beck", 1) == (LIBRARY[0],)
    assert index.search("BECK, Ada: rival?", 1) == (LIBRARY[1],)


def test_ties_keep_their_order_and_strangers_stay_away():
    index = DocumentIndex(LIBRARY)
    assert index.search("Leo", 9) == (LIBRARY[2], LIBRARY[3], LIBRARY[1])
    assert index.search("zebra", 9) == ()
    assert index.search("", 9) == ()


def test_an_index_without_words_is_refused():
    for documents in ([], [document("", "")], [document("t", "...")]):
        with pytest.raises(ValueError, match="cannot index"):
            DocumentIndex(documents)


def test_search_tool_stops_at_its_deadline():
    class Slow(DocumentIndex):
        def search(self, query: str, num_documents: int) -> tuple[Document, ...]:
            time.sleep(1.0)
            return ()

    tool = SearchTool(index=Slow(LIBRARY), deadline_s=0.05)
    with pytest.raises(ToolTimeout, match=r"SearchTool gave no answer in 0\.05 s"):
        asyncio.run(tool("q"))


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "no proxy at all"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_this_machine_is_never_asked_through_a_proxy(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, host: str, proxy: str
):
    for name in PROXIES:
        monkeypatch.setenv(name, proxy)
        monkeypatch.setenv(name.lower(), proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    url = serve(in_json({"result": [[{"document": {"contents": "a\nb"}}]]}))
    client = RetrieverClient(url=url.replace("127.0.0.1", host))
    assert client.call("q") == (Document(title="a", text="b"),)


def test_other_machines_are_asked_through_the_proxy(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def answer(request: dict[str, Any]) -> tuple[int, bytes]:
        asked.append(request["path"])
        return in_json({"result": [[]]})(request)

    proxy = serve(answer).removesuffix("/retrieve")
    for name in PROXIES:
        monkeypatch.setenv(name, proxy)
        monkeypatch.setenv(name.lower(), proxy)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    RetrieverClient(url="http://retriever.invalid/retrieve").call("q")
    assert asked == ["http://retriever.invalid/retrieve"]


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("localhost", True), ("LOCALHOST", True),
     ("x.localhost", True), ("[::1]", True), ("[::ffff:127.0.0.1]", True), ("0.0.0.0", True),
     ("[::]", True), ("10.0.0.1", False), ("localhost.example", False),
     ("127.0.0.1.example", False), ("[2001:db8::1]", False)],
)  # fmt: skip
def test_which_addresses_are_this_machines_own(host: str, own: bool):
    assert is_loopback(f"http://{host}:8000/retrieve") is own
