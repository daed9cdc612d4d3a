"""Search tools: BM25 over documents in memory, and a retriever reached by HTTP."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import bm25s
import httpx2
import numpy as np

from spanwise.errors import SpanwiseError, one_line
from spanwise.tools.base import Tool, ToolError

K1, B = 0.9, 0.4
"""BM25's saturation and length constants, at the values usual for Wikipedia passages.

With 1.5 and 0.75 a name that stands twice outweighs the relation that was asked for.
"""

MAX_TITLE = 200
"""Characters that a title may have."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A passage and the title of the page it stands on."""

    title: str
    """Title of the page; empty if it has none."""

    text: str
    """The passage itself."""


def search_terms(text: str) -> list[str]:
    """The words that BM25 sees, in lower case and without punctuation.

    Example:
      >>> search_terms("The mother of Alan Grove?")
      ['the', 'mother', 'of', 'alan', 'grove']
    """
    return re.findall(r"\w+", text.lower())


class DocumentIndex:
    """BM25 over titles plus BM25 over texts.

    A name stands in the texts of many documents that are about somebody else, so texts
    alone rank them alike. The title says whom a document is about:

        score(q, d) = BM25(q, title of d) + BM25(q, text of d)

    Raises:
      ValueError: if there are no documents, or none has a title word or a text word.

    Example:
      >>> index = DocumentIndex([
      ...     Document(title="Ada Beck", text="the mother of Ada Beck is Ida Cole ."),
      ...     Document(title="Leo Dale", text="the mother of Leo Dale is Ada Beck .")])
      >>> [found.title for found in index.search("mother of Ada Beck", 1)]
      ['Ada Beck']
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        titles = [search_terms(document.title) for document in documents]
        texts = [search_terms(document.text) for document in documents]
        if not any(titles) or not any(texts):
            raise SpanwiseError(
                f"cannot index {len(documents)} documents: no words in their titles or texts"
            )
        self.documents = tuple(documents)
        self._fields = [_bm25(titles), _bm25(texts)]

    def search(self, query: str, num_documents: int) -> tuple[Document, ...]:
        """At most ``num_documents`` with a word of the query, best first; ties as indexed."""
        terms = search_terms(query)
        scores = np.zeros(len(self.documents), dtype=np.float64)
        for field in self._fields:
            known = [term for term in terms if term in field.vocab_dict]
            if known:
                scores += field.get_scores(known)
        best: list[int] = []
        for _ in range(min(num_documents, len(scores))):  # few: faster than any sort
            first = int(scores.argmax())
            if scores[first] <= 0.0:
                break
            best.append(first)
            scores[first] = 0.0
        return tuple(self.documents[i] for i in best)


def _bm25(corpus: list[list[str]]) -> Any:
    field = bm25s.BM25(k1=K1, b=B, backend="numpy")
    field.index(corpus, show_progress=False)
    return field


@dataclass(frozen=True, kw_only=True)
class SearchTool(Tool):
    """Searches an index in memory."""

    index: DocumentIndex
    """Documents to search."""

    num_documents: int = 3
    """Number of documents in an answer."""

    deadline_s: float = 10.0
    """Seconds that a search may take."""

    def call(self, query: str) -> tuple[Document, ...]:
        """The best documents for the query, best first."""
        return self.index.search(query, self.num_documents)


@dataclass(frozen=True, kw_only=True)
class RetrieverClient(Tool):
    r"""Asks a retrieval server, in the wire format that Search-R1's server speaks.

        POST {"queries": [query], "topk": num_documents, "return_scores": true}
        -> {"result": [[{"document": {"contents": "title\ntext"}, "score": 0.7}, ...]]}

    A document's title is its ``title``, else the first of several lines of ``contents``,
    without quotation marks; else, or if it is longer than ``MAX_TITLE``, there is none and all
    is text. Hits may also be plain text, ``[document, score]`` pairs, or lists without
    ``result``, as FlashRAG's server answers.

    Args:
      url: Address to post to, such as ``http://127.0.0.1:8000/retrieve``.
      num_documents: Number of documents to ask for.
      deadline_s: Seconds that a call may take in all.

    Raises:
      ValueError: if the address is not http or https.
    """

    url: str
    num_documents: int = 3
    deadline_s: float = 30.0

    def __post_init__(self) -> None:
        if not re.match("https?://[^/]", self.url):
            raise SpanwiseError(
                f"retriever address {self.url!r} must look like http://127.0.0.1:8000/retrieve"
            )

    @cached_property
    def _client(self) -> httpx2.Client:
        limits = httpx2.Limits(max_connections=None, keepalive_expiry=2.0)
        # The environment may name a proxy for the web, which has no business with this machine.
        by_proxy = not is_loopback(self.url)
        return httpx2.Client(timeout=self.deadline_s, limits=limits, trust_env=by_proxy)

    def call(self, query: str) -> tuple[Document, ...]:
        """The server's documents for the query, in its order.

        Raises:
          ToolError: if the server cannot be reached, answers with an error, or answers
            something that is not a list of documents.
        """
        wish = {"queries": [query], "topk": self.num_documents, "return_scores": True}
        client = self._client
        try:
            response = client.post(self.url, json=wish).raise_for_status()
            hits = _hits(response.json())
            return tuple(_document(hit) for hit in hits[: self.num_documents])
        except httpx2.HTTPError as error:
            raise ToolError(f"retriever {self.url} gives no answer: {one_line(error)}") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ToolError(
                f"retriever {self.url} did not answer in JSON of the shape "
                '{"result": [[{"document": {"contents": "title\\ntext"}}]]}'
            ) from error


def is_loopback(url: str) -> bool:
    """Whether an address is one of this machine's own, which no other machine can reach.

    Example:
      >>> [is_loopback(f"http://{host}:8000/q") for host in ("127.0.0.1", "[::1]", "a.org")]
      [True, True, False]
    """
    host = httpx2.URL(url).host
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_loopback or found.is_unspecified


def _hits(reply: Any) -> list[Any]:
    """The list of hits of the one query, however many lists they are wrapped in."""
    hits = reply["result"] if isinstance(reply, dict) else reply
    if not isinstance(hits, list) or not hits:
        raise TypeError
    while hits and isinstance(hits[0], list) and not _is_scored(hits[0]):
        hits = cast(list[Any], hits[0])
    return cast(list[Any], hits)


def _is_scored(hit: list[Any]) -> bool:
    return len(hit) == 2 and isinstance(hit[1], int | float) and not isinstance(hit[0], list)


def _document(hit: Any) -> Document:
    if isinstance(hit, list):
        hit = hit[0]
    fields = hit.get("document", hit) if isinstance(hit, dict) else hit
    if isinstance(fields, str):
        fields = {"contents": fields}
    text = _string(fields["contents"] if "contents" in fields else fields["text"])
    title = _string(fields.get("title") or "").strip()
    first, line_break, rest = text.partition("\n")
    heading = first.strip(' "\r')
    if line_break and (heading == title or (not title and "contents" in fields)):
        title, text = heading, rest
    if len(title) > MAX_TITLE:  # no title: it is part of the passage
        title, text = "", f"{title}\n{text}"
    return Document(title=title, text=text)


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
