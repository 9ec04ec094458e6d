"""What a run was asked, on its own page: the whole recipe, and the command line that asks for exactly the same.

    command(recipe, resources)      # modelyard run recipes/tiny.yaml --set sft.steps=50 --threads 1
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from prefect import get_client
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext

from components.schema.config import BadInput, Config
from components.schema.recipe import Recipe, Resources
from components.schema.records import digest, home

Loader = Callable[[Path, list[str]], Config]


def announce(recipe: Recipe, resources: Resources, words: Sequence[str] = ("run",), options: Sequence[str] = ()) -> None:
    """Say on this run's page what it was asked, and tag it by its recipe. `words`: the command, such as stage sft; `options` stand last."""
    say(recipe, command(recipe, resources, words, options), recipe.name)


def say(asked: Config, line: str, name: str) -> None:
    """What was asked and the command line that asks the same, as artifacts of this run; and the tag recipe:NAME."""
    text = yaml.safe_dump(asked.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=160)
    create_markdown_artifact(markdown=f"```yaml\n{text}```", key="asked", description=f"All that was asked of {name}, every default spelt out")
    create_markdown_artifact(markdown=f"```sh\n{line}\n```", key="command", description="The same from a terminal: equal results, and what stands is reused")
    context = FlowRunContext.get()
    assert context and context.flow_run
    others = {tag for tag in context.flow_run.tags if not tag.startswith("recipe:")}  # a deployment brings the tag of the recipe that its form began with
    context.flow_run.tags = sorted({*others, f"recipe:{name}"})  # here too: whoever adds a tag later starts from these
    with get_client(sync_client=True) as client:
        client.update_flow_run(context.flow_run.id, tags=context.flow_run.tags)


def command(recipe: Recipe, resources: Resources, words: Sequence[str] = ("run",), options: Sequence[str] = ()) -> str:
    """The command line that makes the same jobs, from the recipe file that is nearest."""
    lines = (like(words, path, Recipe.load, recipe) for path in _nearest(recipe))
    shortest = min((line for line in lines if line), key=lambda line: len(joined(line)), default=None)
    return joined([*(shortest or [*words, str(_kept(recipe))]), *given(resources), *options])


def joined(words: Sequence[str]) -> str:
    """Words of the command `modelyard`, quoted for a shell."""
    return shlex.join(["modelyard", *words])


def given(resources: Resources) -> Iterator[str]:
    """Options for what differs from the defaults."""
    default = Resources()
    for name, value in resources:
        if value != getattr(default, name):
            yield from ("--threads", str(value)) if name == "threads" else ("--on", f"{name}={flow_style(_plain(value))}")


def like(words: Sequence[str], path: Path, load: Loader, asked: Config) -> list[str] | None:
    """`words FILE --set …` that asks the same as `asked`, tried out; None where no overrides of this file do.

    Value by value first; a file that says a section by another file's name, or by one dial, needs whole sections.
    """
    wanted = asked.model_dump(mode="json")
    try:
        base = load(path, []).model_dump(mode="json")
    except BadInput:
        return None
    for sets in (list(differences(base, wanted)), [_set(name, value) for name, value in wanted.items() if base[name] != value]):
        try:
            if digest(load(path, sets).model_dump(mode="json")) == digest(wanted):
                return [*words, str(path), *(word for line in sets for word in ("--set", line))]
        except BadInput:
            continue
    return None


def differences(base: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """`a.b=value` for each value that differs. A mapping that has other keys, or keys with a dot, is set whole."""
    for name, value in wanted.items():
        before = base[name]
        if isinstance(before, dict) and isinstance(value, dict) and before.keys() == value.keys() and not any("." in key for key in value):
            yield from differences(before, value, f"{prefix}{name}.")
        elif digest(before) != digest(value):
            yield _set(prefix + name, value)


def flow_style(value: Any) -> str:
    """A value as YAML on one line, as `--set` reads it."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _set(name: str, value: Any) -> str:
    return f"{name}={flow_style(value)}"


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Config) else value


def _nearest(recipe: Recipe) -> list[Path]:
    """Recipe files that this one may have been made from: those of its name, else of its data, else all."""
    files = sorted(Path("recipes").glob("*.yaml"))
    for pattern in (f"name: {recipe.name}\n", f"name: {recipe.data.name}\n"):
        if found := [path for path in files if pattern in path.read_text(encoding="utf-8")]:
            return found
    return files


def _kept(recipe: Recipe) -> Path:
    """The recipe as a file of its own."""
    resolved = recipe.model_dump(mode="json")
    path = home() / "recipes" / f"{recipe.name}-{digest(resolved)[:8]}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
