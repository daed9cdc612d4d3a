"""Which answers may reach the scorers of ``reasoning-gym`` that evaluate or misread text.

Read task by task in version 0.1.25. Nothing that a model wrote is evaluated: where a scorer
hands the answer to ``sympy.parse_expr``, which evaluates it as Python, the answer must be an
expression of numbers, operators, brackets and the task's own symbols; where it calls ``eval``,
the scorer is given ``ast.literal_eval`` in its place; where a number that is none (``nan``) is
paid in full, the answer must be of numbers. A task whose scorer evaluates text and that is
not here is refused.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass

LITERALS = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
"""Tasks whose scorers call ``eval`` to read a list."""

OWN_TEXT = {
    "basic_arithmetic", "bitwise_arithmetic", "codeio", "number_sorting", "propositional_logic"
}  # fmt: skip
"""Tasks that evaluate nothing but what the package itself wrote, or not as Python."""

NUMBERS = {
    "complex_arithmetic": re.compile(r"[-+.0-9eEijIJ()\s]*"),
    "number_sorting": re.compile(r"[-+.0-9eE,'\"\[\]\s]*"),
}
"""Tasks whose scorers compare floats such that ``nan`` is right, and what answers are made of."""

MAX_EXPRESSION = 1000
"""Characters of an expression beyond four times those of the reference."""

_EVALUATORS = {"eval", "exec", "parse_expr", "sympify", "lambdify"}
_TOKEN = re.compile(r" *(?:([0-9]+(?:\.[0-9]+)?)|([A-Za-z]+)|(\*\*|[-+*/(),])) *")
_TOWER = re.compile(r"\*\*[-+ ]*[0-9A-Za-z.]+ *\*\*|\*\*[-+ ]*[0-9]{4}")


@dataclass(frozen=True)
class _Expressions:
    """Expressions of numbers, ``+ - * / ( )`` and what the fields add."""

    powers: bool = True
    """``**`` and decimal points."""

    names: frozenset[str] = frozenset()
    """Functions and constants, beside the names that are in the reference."""


_FUNCTIONS = frozenset({
    "C", "E", "pi", "exp", "log", "ln", "sqrt", "sin", "cos", "tan", "cot", "sec", "csc",
    "asin", "acos", "atan", "sinh", "cosh", "tanh",
})  # fmt: skip

EXPRESSIONS = {
    "countdown": _Expressions(powers=False),
    "puzzle24": _Expressions(powers=False),
    "polynomial_multiplication": _Expressions(),
    "simple_integration": _Expressions(names=_FUNCTIONS),
    "intermediate_integration": _Expressions(names=_FUNCTIONS),
}
"""Tasks whose scorers evaluate an expression."""


def is_readable(task: str, answer: str, reference: str) -> bool:
    """Whether an answer may be given to the scorer of a task.

    Example:
      >>> is_readable("countdown", "6*(98 - 54)", "1 + 2")
      True
      >>> is_readable("countdown", "print(1)", "1 + 2")
      False
    """
    if (numbers := NUMBERS.get(task)) is not None:
        return numbers.fullmatch(answer) is not None
    if (kind := EXPRESSIONS.get(task)) is not None:
        return _is_expression(kind, answer, reference)
    return True


def evaluator(scorer: type) -> str | None:
    """What a scorer's module calls to evaluate text, or None.

    Example:
      >>> evaluator(ast.NodeVisitor) is None
      True
    """
    for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(scorer) or scorer))):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
            if called in _EVALUATORS:
                return called
    return None


def read_literals_only(scorer: type) -> None:
    """Let the module of a scorer read literals where it would evaluate text."""
    vars(inspect.getmodule(scorer))["eval"] = ast.literal_eval


def _is_expression(kind: _Expressions, answer: str, reference: str) -> bool:
    if len(answer) > MAX_EXPRESSION + 4 * len(reference) or _TOWER.search(answer):
        return False
    names = kind.names | set(re.findall("[A-Za-z]+", reference))
    at = 0
    while at < len(answer):
        if (token := _TOKEN.match(answer, at)) is None:
            return False
        number, name, sign = token.groups()
        if (name and name not in names) or (sign == "," and sign not in reference):
            return False
        if not kind.powers and (sign == "**" or (number and "." in number)):
            return False
        at = token.end()
    # two signs that ``parse_expr`` would read as one, such as the floor division of 7//2
    return re.search(r"/ */", answer) is None and (kind.powers or "**" not in answer)
