"""Forms: what the Prefect UI is told of every deployment, and the command line that a run says is the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.schema import jobs
from components.schema.config import BadInput
from components.schema.jobs import Run
from components.schema.recipe import Recipe, Resources
from components.schema.records import Dataset, Part, digest
from flows.commands.line import run as run_command
from flows.doors import asked

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
NAMES = [deployment["name"] for deployment in DEPLOYMENTS]

# What a person changes in a form, as overrides of tiny; each is then only a resolved recipe, as the form sends it.
CHANGES = {
    "nothing": [],
    "one value": ["sft.steps=50"],
    "another name": ["name=mine", "seed=7"],
    "a small number": ["pretrain.learning_rate=1e-5"],
    "a section left out": ["align=null"],
    "another method": ["align={method: dpo, steps: 40, batch_size: 4, learning_rate: 1e-5}"],
    "a list": ["data.benchmarks=[mini_gsm8k]", "evals.suites=[mini_gsm8k]"],
    "text with quotes and spaces": ["sft.train_layers='(attn|mlp) it''s \"here\"'"],
    "a mapping with other keys": ["sft.mix={sum: 2.0}", "gate.policy.margins={mini_gsm8k: 0.1}"],
    "a section that was not there": ["judge={steps: 30, batch_size: 4, learning_rate: 1e-4}"],
    "open-ended fields": ["model.extra={rope_theta: 500000.0, attention_bias: true}"],
}


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def typed(line: str) -> tuple[Recipe, Resources]:
    """What `modelyard run …` would be asked, read by the command's own parser."""
    import typer

    app = typer.Typer()
    app.command()(run_command)
    words = shlex.split(line)
    assert words[:2] == ["modelyard", "run"]
    given = typer.main.get_command(app).make_context("run", words[2:]).params
    return Recipe.load(given["recipe"], given["sets"] or []), Resources.parse(given["threads"], given["on"])


def identities(recipe: Recipe) -> dict[str, str]:
    parts = {name: Part(path=f"data/x/{name}", identity=name) for name in Dataset.model_fields if name != "name"}
    return {name: job.identity for name, job in jobs.line(recipe, Dataset(name="x", **parts), Run(seed=recipe.seed)).items()}


@pytest.mark.parametrize("change", CHANGES)
def test_the_command_line_that_a_run_shows_asks_for_the_same_jobs(change: str) -> None:
    recipe = Recipe.load("recipes/tiny.yaml", CHANGES[change])
    found, resources = typed(asked.command(recipe, Resources(threads=1, accelerator="cpu")))
    assert digest(found.model_dump(mode="json")) == digest(recipe.model_dump(mode="json"))
    assert identities(found) == identities(recipe)
    assert resources == Resources(threads=1, accelerator="cpu")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_as_it_stands_in_its_file_is_asked_for_by_its_name_alone(name: str) -> None:
    assert asked.command(Recipe.load(f"recipes/{name}"), Resources()) == f"modelyard run recipes/{name}"


def test_a_recipe_made_by_one_dial_is_asked_for_with_what_the_dial_decided() -> None:
    recipe = Recipe.load("recipes/tiny.yaml", ["model={size: 2m, context_tokens: 160}", "pretrain.steps=77"])
    found, _ = typed(asked.command(recipe, Resources()))
    assert identities(found) == identities(recipe)


def test_a_recipe_that_is_like_no_file_is_kept_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.load("recipes/tiny.yaml", ["sft.steps=50"])
    monkeypatch.chdir(tmp_path)
    line = asked.command(recipe, Resources())
    assert " --set " not in line
    assert Recipe.load(shlex.split(line)[2]) == recipe


def test_resources_are_said_where_they_are_not_the_default() -> None:
    assert list(asked.given(Resources())) == []
    assert list(asked.given(Resources(threads=2, processes=2, micro_batch_size=4))) == ["--threads", "2", "--on", "processes=2", "--on", "micro_batch_size=4"]


def test_a_form_may_leave_the_dimensions_to_the_one_dial() -> None:
    raw = Recipe.load("recipes/tiny.yaml").model_dump(mode="json")
    raw["model"] |= {"size": "2m", "hidden_size": None, "layers": None, "heads": None, "intermediate_size": None}
    assert Recipe.model_validate(raw) == Recipe.parse(raw, "the form")
    assert Recipe.model_validate(raw).model.hidden_size


def test_a_browser_that_sends_a_whole_float_as_an_int_asks_for_the_same_model() -> None:
    filed, sent = (Recipe.load("recipes/tiny.yaml", [f"model.extra={{rms_norm_eps: {value}, rope_parameters: {{rope_type: linear, factor: {value}}}}}"]) for value in ("1.0", "1"))
    assert digest(filed.model_dump(mode="json")) == digest(sent.model_dump(mode="json"))


# ---------------------------------------------------------------- the forms


def form(deployment: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the server is told of a deployment: the schema of its form, and the values that stand in it."""
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    from flows import deployments

    given: dict[str, Any] = {}
    for step in deployment.get("build", ()):
        given |= getattr(deployments, next(iter(step)).rpartition(".")[2])(**next(iter(step.values())))
    told = {name: given[match[1]] if isinstance(value, str) and (match := re.fullmatch(r"\{\{ (\w+) \}\}", value)) else value for name, value in deployment.get("parameters", {}).items()}
    return parameter_schema(load_flow_from_entrypoint(deployment["entrypoint"])).model_dump_for_openapi(), told


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=NAMES)
def test_every_form_can_be_drawn_and_explains_itself(deployment: dict[str, Any]) -> None:
    schema, _ = form(deployment)
    assert "oneOf" not in str(schema), "the page draws anyOf alone"
    assert all(field.get("description") or "$ref" in field for field in schema["properties"].values()), "a field without a sentence"
    for name, section in schema.get("definitions", {}).items():
        mute = [field for field, told in section.get("properties", {}).items() if not told.get("description") and "$ref" not in told]
        assert not mute, f"{name}: {mute} have no sentence"
        assert not any("anyOf" in choice for field in section.get("properties", {}).values() for choice in field.get("anyOf", ())), f"{name} has a choice in a choice"


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=NAMES)
def test_what_a_form_begins_with_is_accepted_by_it(deployment: dict[str, Any]) -> None:
    from prefect.utilities.schema_tools.validation import validate

    schema, values = form(deployment)
    required = set(schema.get("required", ())) - set(values)
    assert not validate(values, {**schema, "required": []}) and required <= {"model", "evals", "request"}


def test_a_wrong_value_is_refused_by_the_form_itself() -> None:
    from prefect.utilities.schema_tools.validation import validate

    schema, values = form(next(d for d in DEPLOYMENTS if d["name"] == "train-and-release"))
    values["recipe"]["sft"]["steps"] = 0
    values["recipe"]["data"]["heldout_fraction"] = 0.7
    values["recipe"]["colour"] = "green"
    said = " ".join(f"{error.json_path}: {error.message}" for error in validate(values, schema)) + str([e.context for e in validate(values, schema)])
    assert "less than" in said and "0.7" in said and "colour" in said


@pytest.mark.parametrize(
    ("change", "where", "said"),
    [
        ({"iterations": 0}, "align.iterations", "minimum of 0"),
        ({"rewards": [{"kind": "model", "tokens": 0}]}, "align.rewards[0].tokens", "minimum of 0"),
        ({"gamma": 1.5}, "align.gamma", "maximum of 1"),
        ({"method": "dpo"}, "align", "'rollout_size'"),
    ],
)
def test_a_wrong_value_of_a_method_is_named_although_there_are_other_methods(change: dict[str, Any], where: str, said: str) -> None:
    from prefect.utilities.schema_tools.validation import ValidationError, validate

    schema, values = form(next(d for d in DEPLOYMENTS if d["name"] == "train-and-release"))
    values["recipe"]["align"] |= change
    with pytest.raises(ValidationError) as error:
        validate(values, schema, raise_on_error=True)
    assert f"'recipe.{where}'" in str(error.value) and said in str(error.value)


@pytest.mark.parametrize("align", [{"method": "dpo", "steps": 3, "batch_size": 4, "learning_rate": 1e-4}, {"method": "best_of_n", "steps": 3, "batch_size": 4, "learning_rate": 1e-4}, None])
def test_each_method_is_accepted_with_its_own_fields(align: dict[str, Any] | None) -> None:
    from prefect.utilities.schema_tools.validation import validate

    schema, values = form(next(d for d in DEPLOYMENTS if d["name"] == "train-and-release"))
    values["recipe"]["align"] = align
    assert not validate(values, schema)


def test_a_field_of_a_method_keeps_its_name_where_a_bound_has_the_same() -> None:
    drawn = next(part for part in Recipe.model_json_schema()["properties"]["align"]["anyOf"] if part.get("title") == "PPO")
    assert "pattern" in drawn["properties"]["rewards"]["items"]["properties"]
    assert "minimum" not in str(drawn["properties"]["clip_range"])


def test_no_deployment_names_a_path_of_one_machine_or_an_entry_point_by_file() -> None:
    text = (ROOT / "prefect.yaml").read_text()
    assert not re.search(r"(?<![\w.:])/(tmp|home|work|root|usr)/", text)
    assert all(re.fullmatch(r"flows(\.\w+)+", deployment["entrypoint"]) for deployment in DEPLOYMENTS)


def test_every_flow_has_a_deployment() -> None:
    sources = [path for path in (ROOT / "flows").rglob("*.py")]
    flows = {name for path in sources for name in re.findall(r'@flow\(\s*name="([^"]+)"', path.read_text())}
    assert flows == set(NAMES)


# ---------------------------------------------------------------- modelyard deploy


def test_deploy_refuses_what_would_be_forgotten_or_never_come() -> None:
    from flows import deployments

    recipe = Recipe.load("recipes/tiny.yaml")
    with pytest.raises(BadInput, match=r"reads recipes/tiny\.yaml anew"):
        deployments._form(recipe, "recipes/tiny.yaml", "sft", changed=True)
    with pytest.raises(BadInput, match="has no section `cost`"):
        deployments._form(recipe, "recipes/tiny.yaml", "cost", changed=False)
    with pytest.raises(BadInput, match=r"no time that ever comes \(Invalid timezone: \"Mars/Base\""):
        deployments._schedule("0 3 * * *", "Mars/Base")
    with pytest.raises(BadInput, match="'0 3 \\* \\*'"):
        deployments._schedule("0 3 * *", "UTC")


def test_each_stage_of_every_recipe_has_a_form() -> None:
    from flows import deployments

    for name in RECIPES:
        recipe = Recipe.load(f"recipes/{name}")
        for stage in jobs.stages(recipe):
            form_name, values = deployments._form(recipe, f"recipes/{name}", stage, changed=False)
            assert form_name in NAMES and values["recipe"] == f"recipes/{name}" and len(values) >= 2
