"""The small language of "0.7*ccc + 0.3*huber(delta=0.2)", read from the syntax tree; nothing is evaluated."""

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from train_head.errors import TrainSettingsError, check_known

LONGEST = 300
"""Characters of the longest text that is read: bounds the depth of the tree and the size of a number."""

Options = Mapping[str, float]


@dataclass(frozen=True)
class Term:
    """One part of a sum; `str` gives it in the one spelling that settings record, with all its options.

    Attributes:
        name: what is meant, a key of the table it was read against.
        coefficient: above 0.
        options: every option of `name`, the given ones and the defaults of the others.
        ramp: epochs over which the coefficient grows in equal steps to its value; 0 where it has it from the start.
    """

    name: str
    coefficient: float = 1.0
    options: Options = field(default_factory=dict)
    ramp: int = 0

    def __str__(self) -> str:
        shown = {**self.options, **({"ramp": self.ramp} if self.ramp else {})}
        options = ", ".join(f"{key}={_plain(value)}" for key, value in shown.items())
        call = f"{self.name}({options})" if options else self.name
        return call if self.coefficient == 1 else f"{_plain(self.coefficient)}*{call}"


def keyword_options(function: Callable[..., Any]) -> dict[str, float]:
    """Return the keyword-only parameters of a function with their defaults: the options that an expression may give."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def parse_sum(text: str, what: str, known: Mapping[str, Options]) -> list[Term]:
    """Read terms joined by `+`, each `NAME`, `NAME(option=0.5)`, or one of these times a number.

    Args:
        text: the expression.
        what: kind of thing that the names stand for, as errors call it.
        known: names with their options and the defaults of these.

    Raises:
        TrainSettingsError: anything else; a name or an option that is unknown (with the nearest known one); a
            coefficient or an option that is not a finite number above 0, or not whole where the default is an int.
    """
    return _Reader(text, what, known).terms()


@dataclass(frozen=True)
class _Reader:
    text: str
    what: str
    known: Mapping[str, Options]

    def terms(self) -> list[Term]:
        if len(self.text) > LONGEST:
            raise TrainSettingsError(f"{self.what} has {len(self.text)} characters, at most {LONGEST} are read")
        try:
            tree = ast.parse(self.text.strip(), mode="eval")
        except (SyntaxError, ValueError):
            self._refuse(self.text)
        return [self._term(node) for node in _addends(tree.body)]

    def _term(self, node: ast.expr) -> Term:
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
            return self._named(node, 1.0)
        factor, named = (node.right, node.left) if _number(node.left) is None else (node.left, node.right)
        return self._named(named, self._above_zero(factor, f"the coefficient of {ast.unparse(named)}"))

    def _named(self, node: ast.expr, coefficient: float) -> Term:
        keywords: list[ast.keyword] = []
        name = node
        if isinstance(node, ast.Call) and not node.args:
            name, keywords = node.func, node.keywords
        given = {keyword.arg: keyword.value for keyword in keywords}
        if not isinstance(name, ast.Name) or len(given) < len(keywords) or None in given:
            self._refuse(ast.unparse(node))
        check_known(self.what, [name.id], self.known)
        options = dict(self.known[name.id])
        for key, value in given.items():
            options[str(key)] = self._option(name.id, str(key), value)
        return Term(name.id, coefficient, options)

    def _option(self, name: str, key: str, node: ast.expr) -> float:
        known = self.known[name]
        if not known:
            raise TrainSettingsError(f"{self.what} {name!r} has no options, got {key!r}")
        check_known(f"option of {self.what} {name}", [key], known)
        value = self._above_zero(node, f"option {key} of {name}")
        if isinstance(known[key], int) and not value.is_integer():
            raise TrainSettingsError(f"{self.what} {self.text!r}: option {key} of {name} must be whole, got {value:g}")
        return type(known[key])(value)

    def _above_zero(self, node: ast.expr, subject: str) -> float:
        value = _number(node)
        if value is None:
            self._refuse(ast.unparse(node))
        if not 0 < value < math.inf:
            raise TrainSettingsError(f"{self.what} {self.text!r}: {subject} must be above 0, got {value:g}")
        return value

    def _refuse(self, part: str) -> NoReturn:
        where = "" if part.strip() == self.text.strip() else f": {part!r}"
        raise TrainSettingsError(
            f"{self.what} {self.text!r} cannot be read{where}; write NAME, NAME(option=0.5) or 0.3*NAME, and join "
            f"several by + (known: {', '.join(sorted(self.known))})"
        )


def _addends(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _addends(node.left) + _addends(node.right)
    return [node]


def _number(node: ast.expr) -> float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _number(node.operand)
        return None if value is None else -value
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]
    return None


def _plain(value: float) -> str:
    return repr(value).removesuffix(".0")
