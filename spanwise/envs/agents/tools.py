"""Tools of an agent: their schemas for the chat template, and calls whose arguments fit."""

from __future__ import annotations

import asyncio
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jsonschema

from spanwise.envs.agents.calls import ToolCall
from spanwise.errors import SpanwiseError, first_line
from spanwise.tools.base import ToolError, ToolTimeout, run_with_deadline


class AgentTool(ABC):
    """Something that an agent may call, by JSON arguments."""

    schema: Mapping[str, Any]
    """For the chat template: ``{"type": "function", "function": {"name": ..., ...}}``."""

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]

    def fault(self, call: ToolCall) -> str:
        """What is wrong with the arguments of a call, in words for the model; else empty."""
        parameters = self.schema["function"].get("parameters") or {"type": "object"}
        errors = jsonschema.Draft202012Validator(parameters).iter_errors(dict(call.arguments))
        error: Any = next(iter(sorted(errors, key=lambda error: len(error.path))), None)
        return f"{call.name}: {first_line(error)}"[:300] if error is not None else ""

    @abstractmethod
    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        """The result, as the model is to read it.

        Raises:
          ToolError: if there is none.
        """


@dataclass(frozen=True)
class Function(AgentTool):
    """A Python function, plain or a coroutine; a plain one runs in a thread of its own."""

    function: Callable[..., Any]
    schema: Mapping[str, Any]  # pyright: ignore[reportIncompatibleVariableOverride]
    deadline_s: float = 30.0

    async def __call__(self, arguments: Mapping[str, Any]) -> str:
        try:
            if inspect.iscoroutinefunction(self.function):
                result = await asyncio.wait_for(self.function(**arguments), self.deadline_s)
            else:
                result = await run_with_deadline(
                    lambda: self.function(**arguments), self.deadline_s
                )
        except TimeoutError:
            raise ToolTimeout(f"{self.name} gave no answer in {self.deadline_s:g} s") from None
        except ToolError:
            raise
        except Exception as error:
            raise ToolError(f"{self.name} raised {error!r}") from error
        return result_text(result)


def tool_of(function: Callable[..., Any], *, deadline_s: float = 30.0) -> Function:
    """A function as a tool; its schema comes from its signature and docstring.

    Args:
      function: With type hints, and a docstring that describes each argument under ``Args:``.
      deadline_s: Seconds that a call may take.

    Raises:
      SpanwiseError: if there is no docstring or hint to tell the model by.

    Example:
      >>> def add(amount: int) -> int:
      ...     '''Add to the sum.
      ...
      ...     Args:
      ...         amount: What to add.
      ...     '''
      ...     return amount
      >>> tool_of(add).schema["function"]["parameters"]["properties"]
      {'amount': {'type': 'integer', 'description': 'What to add.'}}
    """
    from transformers.utils.chat_template_utils import get_json_schema

    try:
        schema: dict[str, Any] = get_json_schema(function)
    except Exception as error:  # of several kinds, and not only its own
        raise SpanwiseError(
            f"{getattr(function, '__qualname__', function)} cannot be a tool: {first_line(error)} "
            "Tools need type hints, and a docstring that describes each argument under Args:"
        ) from error
    described = {key: value for key, value in schema["function"].items() if key != "return"}
    described["parameters"] = _standard(described["parameters"])
    described["parameters"]["additionalProperties"] = False
    return Function(function, {"type": "function", "function": described}, deadline_s)


def result_text(result: object) -> str:
    """What a tool returned, as text: text as it is, None as ``done``, all else as JSON.

    Example:
      >>> result_text("seven"), result_text(None), result_text({"sum": 7})
      ('seven', 'done', '{"sum": 7}')
    """
    if result is None:
        return "done"
    if isinstance(result, str):
        return result or "(nothing)"
    try:
        return json.dumps(result, ensure_ascii=False, default=str)
    except (TypeError, ValueError) as error:
        raise ToolError(f"the result is {type(result).__name__}, which is no JSON") from error


def _standard(schema: Any) -> Any:
    """A schema of transformers' as JSON Schema writes it: a type that may be null says so."""
    if isinstance(schema, list):
        return [_standard(part) for part in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    fields = {name: _standard(part) for name, part in cast("dict[str, Any]", schema).items()}
    if fields.pop("nullable", False) and "type" in fields:
        kinds = fields["type"]
        fields["type"] = [*(kinds if isinstance(kinds, list) else [kinds]), "null"]
    return fields
