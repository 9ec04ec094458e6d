"""A candidate and the tests that judge it, in two processes that can only exchange plain data.

    candidate process                          judging process
    runs what a model wrote, then serves  ◄──  runs the tests; a name they do not define stands for the candidate's:
    calls until the line is cut           ──►  calling it sends the arguments and waits for the answer

Numbers, texts, lists, dicts and their kin travel by value, and come out as the plain types they are built on: an answer whose class
says it equals everything arrives without that class. Any other object stays where it is, and travels as a number that stands for it (`Remote`):
tests may call it, iterate it, read its attributes and pass it back, but it equals nothing but itself. Changes that a call makes
to the lists, dicts and sets it was given are made to the tests' own too. A module of the standard library is the tests' own, too.
"""

from __future__ import annotations

import ast
import builtins
import collections
import datetime
import decimal
import fractions
import importlib
import json
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque}
MAPPINGS = {"Counter": collections.Counter, "OrderedDict": collections.OrderedDict, "dict": dict}
WRITTEN = {"Decimal": decimal.Decimal, "Fraction": fractions.Fraction}  # by their text, exactly
DATES = {kind.__name__: kind for kind in (datetime.datetime, datetime.date, datetime.time)}
MESSAGE_BYTES = 64 << 20
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **named: function(*args, **named),
    "attribute": getattr, "item": operator.getitem, "iterate": iter, "next": next, "length": len, "truth": bool, "text": str, "contains": operator.contains,
}  # fmt: skip


class Cut(Exception):
    """The process at the other end has ended."""


class Line:
    """One end of the line: sends, asks, answers, and remembers the objects that stay at this end while the other has a number for them."""

    def __init__(self, fd: int, serves: frozenset[str]) -> None:
        """`serves`: what the other end may do with our objects."""
        self.fd, self.serves = fd, serves
        self.objects: dict[int, Any] = {}
        self.numbers: dict[int, int] = {}  # id(object): its number; the object lives in `objects`, so its id stays its own

    # ------------------------------------------------------------ messages

    def send(self, message: Any) -> None:
        data = json.dumps(message).encode()
        data = len(data).to_bytes(4, "big") + data
        while data:
            data = data[os.write(self.fd, data) :]

    def receive(self) -> Any:
        size = int.from_bytes(self._read(4), "big")
        if size > MESSAGE_BYTES:
            raise Cut(f"an answer of {size} bytes")
        return json.loads(self._read(size))

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.fd, min(size, 1 << 16))
            if not part:
                raise Cut("the candidate's process ended")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def ask(self, operation: str, number: int, *args: Any, **named: Any) -> Any:
        """Do something with an object of the other end. It may ask us things before it answers. Errors: what was raised there, by its builtin class."""
        self.send({"do": operation, "with": number, "args": self.packed([list(args), named])})
        while "do" in (answer := self.receive()):
            self.serve(answer)
        if "raised" in answer:
            raise _raised(*answer["raised"])
        for mine, changed in zip([*args, *named.values()], self.unpacked(answer["changed"]) if "changed" in answer else [], strict=False):
            _become(mine, changed)
        return self.unpacked(answer["value"])

    def serve(self, request: dict[str, Any]) -> None:
        """Do what the other end asks, and answer."""
        try:
            if request["do"] not in self.serves:
                raise PermissionError(f"the tests' objects do not serve {request['do']}")
            args, named = self.unpacked(request["args"])
            value = OPERATIONS[request["do"]](self.objects[request["with"]], *args, **named)
            answer = {"value": self.packed(value)}
            if request["do"] == "call" and self.packed([args, named]) != request["args"]:
                answer["changed"] = self.packed([*args, *named.values()])
        except Cut:
            raise
        except BaseException as error:
            answer = {"raised": [_builtin_name(error), _text(error)]}
        self.send(answer)

    # ------------------------------------------------------------ values

    def packed(self, value: Any) -> Any:
        """A value as JSON: itself, or [kind, content]."""
        try:
            return self._packed(value)
        except RecursionError:
            return self._by_number(value)

    def _packed(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is Remote:
            return ["yours", value._Remote__number]
        if isinstance(value, int):
            whole = int.__int__(value)
            return whole if -(1 << 63) < whole < 1 << 63 else ["int", hex(whole)]
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, complex):
            return ["complex", [complex.__complex__(value).real, complex.__complex__(value).imag]]
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, bytes | bytearray):
            return ["bytearray" if isinstance(value, bytearray) else "bytes", bytes(value).decode("latin-1")]
        for name, sequence in SEQUENCES.items():
            if isinstance(value, sequence):
                return [name, [self._packed(item) for item in sequence.__iter__(value)]]
        for name, mapping in MAPPINGS.items():
            if isinstance(value, mapping):
                return [name, [[self._packed(key), self._packed(dict.__getitem__(value, key))] for key in dict.__iter__(value)]]
        if kind is range:
            return ["range", [value.start, value.stop, value.step]]
        if kind.__name__ in WRITTEN and kind is WRITTEN[kind.__name__]:
            return [kind.__name__, str(value)]
        if kind.__name__ in DATES and kind is DATES[kind.__name__] and getattr(value, "tzinfo", None) is None:
            return [kind.__name__, value.isoformat()]
        if kind is datetime.timedelta:
            return ["timedelta", [value.days, value.seconds, value.microseconds]]
        if kind is type and getattr(builtins, value.__name__, None) is value:
            return ["type", value.__name__]
        if kind.__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "shape", ()):  # a number of numpy's
            return self._packed(value.item())
        return self._by_number(value)

    def _by_number(self, value: Any) -> list[Any]:
        number = self.numbers.setdefault(id(value), len(self.objects))
        self.objects[number] = value
        return ["mine", number]

    def unpacked(self, data: Any) -> Any:
        if not isinstance(data, list):
            return data
        kind, content = data
        if kind in SEQUENCES:
            return SEQUENCES[kind](map(self.unpacked, content))
        if kind in MAPPINGS:
            return MAPPINGS[kind]({self.unpacked(key): self.unpacked(value) for key, value in content})
        if kind in DATES:
            return DATES[kind].fromisoformat(content)
        if kind in WRITTEN:
            return WRITTEN[kind](content)
        if kind == "mine":
            return Remote(self, content)
        if kind == "yours":
            return self.objects[content]
        if kind == "int":
            return int(content, 16)
        if kind in ("bytes", "bytearray"):
            return getattr(builtins, kind)(content.encode("latin-1"))
        if kind in ("complex", "range"):
            return getattr(builtins, kind)(*content)
        if kind == "type" and isinstance(named := getattr(builtins, content), type):
            return named
        if kind == "timedelta":
            return datetime.timedelta(*content)
        raise Cut(f"an answer of the unknown kind {kind!r}")


class Remote:
    """An object of the other end. It equals nothing but itself: nobody may answer for its own equality."""

    def __init__(self, line: Line, number: int) -> None:
        self.__line, self.__number = line, number

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.__line.ask("call", self.__number, *args, **named)

    def __getattr__(self, name: str) -> Any:
        return self.__line.ask("attribute", self.__number, name)

    def __getitem__(self, key: Any) -> Any:
        return self.__line.ask("item", self.__number, key)

    def __contains__(self, item: Any) -> bool:
        return bool(self.__line.ask("contains", self.__number, item))

    def __len__(self) -> int:
        return self.__line.ask("length", self.__number)

    def __bool__(self) -> bool:
        return bool(self.__line.ask("truth", self.__number))

    def __str__(self) -> str:
        return str(self.__line.ask("text", self.__number))

    __repr__ = __str__

    def __iter__(self) -> Iterator[Any]:
        items = self.__line.ask("iterate", self.__number)
        while True:
            try:
                yield next(items)
            except StopIteration:
                return

    def __next__(self) -> Any:
        return self.__line.ask("next", self.__number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self.__number == other.__number

    def __hash__(self) -> int:
        return hash(self.__number)


# ---------------------------------------------------------------- the two ends


def serve_candidate(fd: int, program: str) -> None:
    """Run what was written, say what stopped it, then tell its names and answer calls until the line is cut."""
    line = Line(fd, frozenset(OPERATIONS))
    written: dict[str, Any] = {}
    if stopped := run(program, written, "<program>"):
        return line.send({"stopped": stopped})
    line.send({"ready": True})
    try:
        asked = line.receive()
        line.send({name: _described(line, written[name]) for name in asked if name in written})
        while True:
            line.serve(line.receive())
    except Cut:
        return None


def judge(fd: int, tests: str) -> str | None:
    """None where the tests ran to their end, else what stopped them."""
    line = Line(fd, frozenset({"call"}))
    try:
        ready = line.receive()
        if "stopped" in ready:
            return str(ready["stopped"])
        names = _names(tests)
        line.send(names)
        told = line.receive()
        theirs = {name: _resolved(line, told[name]) for name in names if name in told}
    except Cut as cut:
        return f"{cut} before the program did"
    except SyntaxError as error:
        return f"{type(error).__name__}: {error} in the tests"
    return run(tests, {name: value for name, value in theirs.items() if _may_stand_for(name, theirs)}, "<tests>")


def run(program: str, namespace: dict[str, Any], name: str) -> str | None:
    """None where a program ran to its end, else what stopped it. `exit(0)` is not the end: it skips what follows."""
    try:
        exec(compile(program, name, "exec"), namespace)
    except BaseException as error:
        return f"{type(error).__name__}: {_text(error)}"[:300]
    return None


def _names(tests: str) -> list[str]:
    """What the tests may mean of the candidate's. Python's own names (`__builtins__`) are never the candidate's."""
    return sorted({node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name) and not node.id.startswith("__")})


def _may_stand_for(name: str, theirs: dict[str, Any]) -> bool:
    """A candidate's name hides a builtin's only in tests of nothing else of its: MBPP has functions called `sum`, but tests of f call the real one."""
    return not hasattr(builtins, name) or all(hasattr(builtins, other) or isinstance(value, types.ModuleType) for other, value in theirs.items())


def _described(line: Line, value: Any) -> Any:
    """What stands behind one of the candidate's names: a module by its name, all else as it travels."""
    known = isinstance(value, types.ModuleType) and _tests_have(value.__name__)
    return {"module": value.__name__} if known else {"value": line.packed(value)}


def _resolved(line: Line, described: dict[str, Any]) -> Any:
    """The tests import a module themselves: nothing has been changed in theirs."""
    if "value" in described:
        return line.unpacked(described["value"])
    if not _tests_have(described["module"]):
        raise Cut(f"the candidate named {described['module']!r}, which is no module of the tests,")
    return importlib.import_module(described["module"])


def _tests_have(module: str) -> bool:
    return module.partition(".")[0] in {*sys.stdlib_module_names, "numpy"}


def _become(mine: Any, changed: Any) -> None:
    """Make a container of ours what a call has made of it."""
    if isinstance(mine, list | bytearray):
        mine[:] = changed
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(changed)
    elif isinstance(mine, collections.deque):
        mine.clear()
        mine.extend(changed)


def _builtin_name(error: BaseException) -> str:
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")


def _raised(name: str, text: str) -> BaseException:
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        kind = RuntimeError
    try:
        return kind(text)
    except TypeError:  # it wants more than a text, as UnicodeDecodeError does
        return Exception(f"{name}: {text}")


def _text(error: BaseException) -> str:
    try:
        return str(error)[:300]
    except BaseException:
        return "an error that cannot be read"
