"""What a page that is sent to somebody does not say: places, machines, people, passwords.

Settings lose all of it. What a model wrote and read stays as it was, but for home folders and
secrets of a known form.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

HIDDEN = "…"

_SECRET_NAME = re.compile(
    r"(?:^|[._-]|(?<=[a-z])(?=[A-Z]))(?i:key|token|auth|cookie|dsn|pat)$"
    r"|(?i:api_?key|secret|passw|passphrase|credential|authorization)"
)
_SECRET = re.compile(
    r"\b(?:(?:sk|pk|rk|hf|gh[pousr]|github_pat|glpat|xox[abprs]|wandb_v1)[-_](?=[a-zA-Z_-]{0,40}\d)"
    r"|AKIA|AIza|ya29\.|Bearer )[\w.-]{12,}|\beyJ[\w-]{8,300}\.[\w.-]+"
)
_WANDB_KEY = re.compile(r"\b[0-9a-f]{40}\b")  # or a commit: among settings no loss
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@\"']+@")
_ADDRESS = re.compile(  # what is of any length would take for ever on a text that is made for it
    r"([a-z][a-z0-9+.-]{0,30}://)[^\s\"'<>]+"  # http://box:8000/
    r"|[^\s\"'=/:@]{1,60}:[^\s\"'/@]{1,200}@\S+|[\w.+-]{1,60}@[\w.-]+",  # ann:password@box, ann@box
    re.IGNORECASE,
)
_HOST = re.compile(
    r"(?<![\w.-])(?:[A-Za-z][\w-]*(?:\.[\w-]+)*:\d{4,5}|\d{1,3}(?:\.\d{1,3}){3}"
    r"|(?:[\w-]+\.)+(?:com|net|org|edu|gov|io|ai|co|cloud|local|lan|internal|intra|corp|home))"
    r"(?![\w.-])"
)
_HOME = re.compile(r"(?<![\w.])(?:/home/[^/\s\"']+|/Users/[^/\s\"']+|/root(?![\w.-]))")
_PATH = re.compile(
    r"(?<![\w.…/\\-])(?:~[\w.-]*[/\\]|[A-Za-z]:[/\\]|\.\.[/\\]|/(?!/?…|\w+>))[^\s\"',;()\[\]<>|]*"
)


def settings_without_private(value: Any, name: str = "") -> Any:
    """Settings without folders, addresses, hosts, users and secrets; the rest is unchanged.

    Example:
      >>> settings_without_private({"folder": "/home/ann/runs/a", "api_key": "x", "seed": 0})
      {'folder': 'a', 'api_key': '…', 'seed': 0}
      >>> settings_without_private(["--env.url", "http://ann:pw@box:8000/q", "--key=3"])
      ['--env.url', 'http://…', '--key=…']
    """
    if isinstance(value, Mapping):
        return {
            _setting(key): settings_without_private(inner, str(key)) for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return _words(value, name)
    if isinstance(value, str):
        return HIDDEN if value and _SECRET_NAME.search(name) else _setting(value)
    return value


def text_without_private(value: Any) -> Any:
    """What was written and read without home folders and secrets of a known form.

    Example:
      >>> text_without_private(["see /home/ann/a.py", "http://ann:pw@box/"])
      ['see ~/a.py', 'http://…@box/']
    """
    return _mapped(value, _text)


def _words(words: Sequence[Any], name: str) -> list[Any]:
    """A list of values, or of the words of a command line."""
    found: list[Any] = []
    option = ""
    for word in words:
        if isinstance(word, str) and word.startswith("--"):
            option, equals, given = word.partition("=")
            hidden = settings_without_private(given, option)
            found.append(f"{option}={hidden}" if equals else option)
        else:
            found.append(settings_without_private(word, option or name))
    return found


def _setting(text: str) -> str:
    text = _WANDB_KEY.sub(HIDDEN, _SECRET.sub(HIDDEN, text))
    if re.match(r"/|~|\.\./|[A-Za-z]:[/\\]", text):  # as a whole, with the spaces in it
        return _place(text)
    text = _ADDRESS.sub(lambda found: (found[1] or "") + HIDDEN, text)
    text = _PATH.sub(lambda found: _place(found[0]), _HOST.sub(HIDDEN, text))
    for own in _own_names():
        text = re.sub(rf"(?<!\w){re.escape(own)}(?!\w)", HIDDEN, text)
    return text


def _text(text: str) -> str:
    return _HOME.sub("~", _SECRET.sub(HIDDEN, _IN_ADDRESS.sub(HIDDEN + "@", text)))


def _place(path: str) -> str:
    """The last part of a path, but for one that names a person."""
    parts = [part for part in re.split(r"[/\\]", path) if part]
    person = len(parts) < 2 or re.fullmatch(
        r"(?:[A-Za-z]:)?[/\\](?:home|Users)[/\\][^/\\]*[/\\]?", path
    )
    return HIDDEN if person else parts[-1]


def _own_names() -> list[str]:
    """What this machine and its user are called, where that is no word like others."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = os.environ.get("USER", "")
    return [name for name in (user, socket.gethostname()) if len(name) > 3 and name != "root"]


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in value]
    return value
