"""Small stand-ins for rollout tests: a tokenizer of characters and an environment of words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from spanwise.envs.base import Environment, Reply, Task, Turn
from spanwise.samplers.base import Completion, Request, Sampler
from spanwise.tree import Path


class CharTokenizer:
    """One token a character, so that tests can count them."""

    chat_template = "yes"

    def encode(self, text: str, **options: object) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, token_ids: Sequence[int], **options: object) -> str:
        return "".join(chr(t) for t in token_ids)

    def apply_chat_template(self, messages: list[dict[str, str]], **options: object) -> str:
        return "".join(m["content"] for m in messages)


@dataclass(frozen=True, kw_only=True)
class WordGame(Environment):
    """``go`` calls a tool that says ``[n]``; ``win`` and ``lose`` answer; else malformed."""

    before_reply: Callable[[Task, Sequence[Turn]], Awaitable[None]] | None = None
    wage: Any = None
    """Paid for each call."""
    seen: list[str] = field(default_factory=list)
    stop_strings = (";",)

    def tasks(self, split: str) -> list[Task]:
        return [Task(id=f"{split}-{i}", question=f"Q{i}:", answers=("win",)) for i in range(8)]

    def messages(self, task: Task) -> list[dict[str, str]]:
        return [{"role": "user", "content": task.question}]

    async def reply(self, task: Task, turns: Sequence[Turn]) -> Reply:
        self.seen.append(turns[-1].text)
        if self.before_reply is not None:
            await self.before_reply(task, turns)
        word = turns[-1].text.rstrip(";").split("-")[0]
        if turns[-1].truncated:
            return Reply(stop="length", reward=-1.0)
        if word == "go":
            return Reply(
                stop="continue",
                reward=self.wage,
                observation=f"[{len(turns)}]",
                outcome={"said": word},
            )
        if word == "nan":
            return Reply(stop="end", reward=float("nan"))
        if word in ("win", "lose"):
            right = word == "win"
            label = f"answer {word}"
            return Reply(stop="end", reward=float(right), success=right, label=label)
        return Reply(stop="malformed", reward=-1.0)


class PathSampler(Sampler):
    """Draws by a function of the prompt's text and the request; remembers every request."""

    def __init__(self, write: Callable[[str, Request], str | tuple[str, float]]) -> None:
        self.write = write
        self.requests: list[Request] = []

    async def sample(self, request: Request) -> Completion:
        self.requests.append(request)
        written = self.write("".join(chr(t) for t in request.prompt), request)
        text, logprob = written if isinstance(written, tuple) else (written, -1.0)
        tokens = tuple(ord(c) for c in text)[: request.max_tokens]
        logprobs = (logprob,) * len(tokens)
        return Completion(
            tokens=tokens,
            engine_logprobs=logprobs,
            sampling_logprobs=logprobs,
            finish="length" if len(tokens) < len(text) else "stop",
        )

    def update_weights(self, model: object) -> None: ...


def path_name(path: Path) -> str:
    return ".".join(map(str, path))
