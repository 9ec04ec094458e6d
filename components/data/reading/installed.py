"""What is installed beside us: docstrings as English and short functions as code, of Python's library and of packages.

    for found in texts(("stdlib", "numpy")): ...       # Collected or Refused

Real technical text on every machine with Python, with no network: the embedded default's source beside the curriculum.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from components.data.reading import licences
from components.data.reading.formats import Collected, Refused
from components.schema.config import BadInput

LONGEST_FUNCTION = 30  # lines
SHORTEST_DOCSTRING = 60  # characters
_SKIPPED = {"site-packages", "test", "tests", "idlelib", "__pycache__", "lib2to3"}


def texts(packages: tuple[str, ...]) -> Iterator[Collected | Refused]:
    """Module by module in sorted order. Errors: BadInput where a package is not installed."""
    for package in packages:
        folder, licence = folder_of(package), _licence(package)
        for file in sorted(folder.rglob("*.py")):
            name = file.relative_to(folder)
            if not _SKIPPED & set(name.parts):
                yield from _from_module(file, f"{package}/{name}", licence)


def folder_of(package: str) -> Path:
    """Where a package's files are; `stdlib` is Python's own library. Errors: BadInput."""
    if package == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if not spec or not spec.submodule_search_locations:
        raise BadInput(f"source: package {package!r} is not installed here, so its docstrings cannot be read. Install it, or correct `packages` (`stdlib` is Python's own library)")
    return Path(next(iter(spec.submodule_search_locations)))


def fingerprint(packages: tuple[str, ...]) -> str:
    """The versions of what is read. Errors: BadInput."""
    return f"python {sys.version.split()[0]}" + "".join(f", {package} {_version(package)}" for package in packages if package != "stdlib")


def _from_module(file: Path, name: str, licence: str | None) -> Iterator[Collected | Refused]:
    try:
        source = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
    except (UnicodeDecodeError, SyntaxError, ValueError, RecursionError, MemoryError) as error:  # test data that is broken on purpose
        yield Refused("python_that_does_not_parse", f"{name}: {error}", name)
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        where = f"{name}:{getattr(node, 'lineno', 1)}"
        docstring = ast.get_docstring(node, clean=False) or ""
        if len(docstring) >= SHORTEST_DOCSTRING:
            yield Collected(inspect.cleandoc(docstring), name, licence, where=where)
        if isinstance(node, ast.FunctionDef) and 2 <= node.end_lineno - node.lineno < LONGEST_FUNCTION:
            yield Collected(textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])), name, licence, language="python", where=where)


def _distribution(package: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(metadata.packages_distributions().get(package, [package])[0])
    except metadata.PackageNotFoundError:
        return None


def _version(package: str) -> str:
    folder_of(package)
    found = _distribution(package)
    return found.version if found else "unversioned"


def _licence(package: str) -> str | None:
    """As the package's metadata has it: the SPDX expression, else a classifier, else the free text."""
    if package == "stdlib":
        return "PSF-2.0"
    found = _distribution(package)
    if not found:
        return None
    classifiers = [one for one in found.metadata.get_all("Classifier") or [] if one.startswith("License :: ") and one.count(" :: ") > 1]
    return licences.spdx(found.metadata.get("License-Expression") or next(iter(classifiers), None) or found.metadata.get("License"))
