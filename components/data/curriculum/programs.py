"""Small Python functions in the manner of HumanEval: signature and docstring are given, the body is the answer.

A family is one operation with one constant; its key is the expression it returns, whatever the argument is called. Held-out
constants are chosen by hash for each expression: training shows it with other constants, the benchmark asks for the held-out ones. `bodies_in` finds the
bodies of all functions in a text by parsing it, names replaced, so that a copy under another name is found too.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

CONSTANTS = range(2, 21)
HELDOUT_PERCENT = 15


@dataclass(frozen=True)
class Family:
    """One operation: how it is called, described and written, and inputs to check it with."""

    name: str
    arguments: tuple[str, ...]
    descriptions: tuple[str, ...]
    expression: str
    inputs: Callable[[int], tuple[object, ...]]


def _numbers(k: int) -> tuple[object, ...]:
    return (0, 1, k, k + 1, 3 * k + 2)


def _lists(k: int) -> tuple[object, ...]:
    return ([], [k], [1, k, k + 3], list(range(k + 2)), [5, 1, 30, 2 * k])


def _words(k: int) -> tuple[object, ...]:
    return ("", "a", "hello", "the quick brown fox jumps")


NUMBER = ("x", "n", "number", "value")
LIST = ("items", "numbers", "values", "row")
WORD = ("word", "text", "name", "line")
FAMILIES = (
    Family("add", NUMBER, ("Return {x} plus {k}.", "Add {k} to {x}."), "{x} + {k}", _numbers),
    Family("subtract", NUMBER, ("Return {x} minus {k}.", "Subtract {k} from {x}."), "{x} - {k}", _numbers),
    Family("multiply", NUMBER, ("Return {x} times {k}.", "Multiply {x} by {k}."), "{x} * {k}", _numbers),
    Family("divide", NUMBER, ("Return {x} divided by {k}, rounded down.", "Divide {x} by {k} and round down."), "{x} // {k}", _numbers),
    Family("remainder", NUMBER, ("Return the remainder of {x} divided by {k}.", "What is left of {x} after division by {k}."), "{x} % {k}", _numbers),
    Family("is_above", NUMBER, ("Return True if {x} is above {k}.", "Tell whether {x} is above {k}."), "{x} > {k}", _numbers),
    Family("is_below", NUMBER, ("Return True if {x} is below {k}.", "Tell whether {x} is below {k}."), "{x} < {k}", _numbers),
    Family("at_most", NUMBER, ("Return {x}, but at most {k}.", "Limit {x} to at most {k}."), "min({x}, {k})", _numbers),
    Family("at_least", NUMBER, ("Return {x}, but at least {k}.", "Raise {x} to at least {k}."), "max({x}, {k})", _numbers),
    Family("first", LIST, ("Return the first {k} of the {x}.", "Take the first {k} of the {x}."), "{x}[:{k}]", _lists),
    Family("skip", LIST, ("Return the {x} after the first {k}.", "Skip the first {k} of the {x}."), "{x}[{k}:]", _lists),
    Family("count", LIST, ("Count how often {k} is in the {x}.", "Return how many of the {x} are {k}."), "{x}.count({k})", _lists),
    Family("has", LIST, ("Return True if {k} is in the {x}.", "Tell whether {k} is in the {x}."), "{k} in {x}", _lists),
    Family("keep_above", LIST, ("Return the {x} above {k}.", "Keep only the {x} above {k}."), "[i for i in {x} if i > {k}]", _lists),
    Family("add_each", LIST, ("Add {k} to each of the {x}.", "Return the {x}, each plus {k}."), "[i + {k} for i in {x}]", _lists),
    Family("sum_plus", LIST, ("Return the sum of the {x} plus {k}.", "Sum the {x} and add {k}."), "sum({x}) + {k}", _lists),
    Family("repeat", WORD, ("Repeat the {x} {k} times.", "Return the {x} {k} times over."), "{x} * {k}", _words),
    Family("start", WORD, ("Return the first {k} letters of the {x}.", "Cut the {x} to {k} letters."), "{x}[:{k}]", _words),
)


@dataclass(frozen=True)
class Program:
    """One function of a family, with the words it is written in."""

    family: Family
    constant: int
    argument: str
    description: str

    @property
    def name(self) -> str:
        return f"{self.family.name}_{self.constant}"

    @property
    def prompt(self) -> str:
        """HumanEval's `prompt`: signature and docstring."""
        return f'def {self.name}({self.argument}):\n    """{self.description.format(x=self.argument, k=self.constant)}"""\n'

    @property
    def expression(self) -> str:
        return self.family.expression.format(x=self.argument, k=self.constant)

    @property
    def body(self) -> str:
        return f"    return {self.expression}"

    @property
    def test(self) -> str:
        """HumanEval's `test`: a function `check(candidate)` of assertions."""
        function = eval(f"lambda {self.argument}: {self.expression}")  # an expression of the table above
        lines = [f"    assert candidate({value!r}) == {function(value)!r}" for value in self.family.inputs(self.constant)]
        return "def check(candidate):\n" + "\n".join(lines) + "\n"

    @property
    def check(self) -> str:
        """What runs after prompt and body: it fails where the body is wrong."""
        return f"{self.test}check({self.name})\n"


def is_heldout(family: Family, constant: int, seed: int) -> bool:
    """Whether this function is kept for mini_humaneval."""
    expression = family.expression.format(x="_", k=constant)
    return int(hashlib.md5(f"{seed}/{expression}".encode()).hexdigest(), 16) % 100 < HELDOUT_PERCENT


@cache
def pool(seed: int, heldout: bool) -> tuple[tuple[Family, int], ...]:
    """All (family, constant) on one side of the split."""
    return tuple((f, k) for f in FAMILIES for k in CONSTANTS if is_heldout(f, k, seed) == heldout)


def write(family: Family, constant: int, rng: Random) -> Program:
    """The function with one of its descriptions and one of its argument's names."""
    return Program(family, constant, rng.choice(family.arguments), rng.choice(family.descriptions))


_FUNCTION = re.compile(r"^def \w+\(.*\):\n(?:(?: .*)?(?:\n|$))+", re.MULTILINE)


def bodies_in(text: str) -> set[str]:
    """The bodies of all functions in a text, docstrings dropped and the argument renamed: equal code, equal string."""
    found = set()
    for match in _FUNCTION.finditer(text):
        try:
            function = ast.parse(match.group().rstrip()).body[0]
        except (SyntaxError, ValueError):
            continue
        if isinstance(function, ast.FunctionDef):
            found.add(_canonical(function))
    return found


def _canonical(function: ast.FunctionDef) -> str:
    names = {argument.arg: f"_{i}" for i, argument in enumerate(function.args.args)}
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.Name) and node.id in names:
            node.id = names[node.id]
    return ast.dump(ast.Module(body, []))
