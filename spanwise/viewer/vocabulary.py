"""The text of each token, from the ``tokenizer.json`` that lies beside a checkpoint.

A record keeps token numbers and the text of whole turns; to draw a token one needs its
own piece of that text. Only the vocabulary is read, no tokenizer is run.
"""

from __future__ import annotations

import json
from typing import Any


def vocabulary_of(text: bytes) -> dict[int, str] | None:
    """The text of each token; None if the file is of a kind that has no such list."""
    try:
        tokenizer = json.loads(text)
        vocabulary = tokenizer["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: pairs of piece and score
            vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
        parts = [tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")]
        byte_level = "ByteLevel" in json.dumps(parts)
        texts = {
            int(number): _bytes_text(piece) if byte_level else piece.replace("▁", " ")
            for piece, number in vocabulary.items()
        }
        for added in tokenizer.get("added_tokens") or []:
            texts[int(added["id"])] = str(added["content"])
        return texts
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return None


def with_spaces(pieces: list[str], text: str) -> list[str]:
    """The same pieces with the white space that stands between them in ``text``.

    Vocabularies of whole words have no spaces; the text that was decoded does.

    Example:
      >>> with_spaces(["who", "is", "?"], "who is?")
      ['who', ' is', '?']
    """
    spaced: list[str] = []
    at = 0
    for piece in pieces:
        found = text.find(piece, at) if piece else -1
        between = text[at:found] if found >= 0 else ""
        if found < 0 or between.strip():
            return pieces
        spaced.append(between + piece)
        at = found + len(piece)
    return spaced


def add_pieces(node: dict[str, Any], vocabulary: dict[int, str] | None) -> None:
    """Put the text of each model token into a node as ``pieces``, None where it is not known.

    Without a vocabulary, words will do where there are as many as tokens.
    """
    tokens, text = node["tokens"], node["text"]
    pieces = None
    if vocabulary is not None and all(token in vocabulary for token in tokens):
        pieces = [vocabulary[token] for token in tokens]
    elif len(words := text.split()) == len(tokens):
        pieces = words
    node["pieces"] = None if pieces is None else with_spaces(pieces, text)


def _byte_of() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for.

    Printable letters of Latin-1 stand for themselves, the other bytes for the letters
    from 256 on, in order.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = [*printable, *range(256, 256 + len(rest))]
    return {chr(letter): byte for letter, byte in zip(letters, printable + rest, strict=True)}


_BYTES = _byte_of()


def _bytes_text(piece: str) -> str:
    r"""The text of a byte-level piece; part of a letter is shown by its bytes, ``\xe2``."""
    if any(letter not in _BYTES for letter in piece):
        return piece
    return bytes(_BYTES[letter] for letter in piece).decode("utf-8", errors="backslashreplace")
