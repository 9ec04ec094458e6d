"""Recipes: what is accepted, and what each refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.schema.config import BadInput
from components.schema.jobs import stages
from components.schema.recipe import Recipe, Resources

ROOT = Path(__file__).parents[2]
TINY = ROOT / "recipes" / "tiny.yaml"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_in_the_repository_is_valid(path: Path) -> None:
    assert Recipe.load(path).name == path.stem


def test_a_recipe_survives_a_round_trip_through_json() -> None:
    recipe = Recipe.load(TINY)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_set_overrides_are_read_as_yaml() -> None:
    recipe = Recipe.load(TINY, ["sft.steps=50", "sft.learning_rate=1e-3", "evals.limit=3", "evals.suites=[mini_mmlu]"])
    assert (recipe.sft.steps, recipe.sft.learning_rate, recipe.evals.limit, recipe.evals.suites) == (50, 1e-3, 3, ("mini_mmlu",))


# What was tried: (overrides, words that the one message must hold)
REFUSED = {
    "an unknown key": (["sft.stepz=5"], ["sft.stepz", "unknown key", "Did you mean `steps`"]),
    "a wrong type": (["sft.steps=many"], ["sft.steps", "integer", "'many'"]),
    "a negative size": (["model.hidden_size=-4"], ["model.hidden_size", "greater than 0", "-4"]),
    "heads that do not divide the width": (["model.heads=7"], ["hidden_size=160", "heads=7", "Use heads in"]),
    "a minibatch that does not divide the rollout": (["align.minibatch_size=24"], ["rollout_size=64", "minibatch_size=24", "Use minibatch_size in"]),
    "a warm-up longer than the run": (["sft.warmup_steps=5000"], ["warmup_steps=5000", "Lower warmup_steps"]),
    "a benchmark that does not exist": (["evals.suites=[mini_gsm9k]"], ["evals.suites", "mini_gsm9k", "mini_gsm8k"]),
    "a suite whose data is not made": (["evals.suites=[gsm8k]"], ["gsm8k", "data.benchmarks"]),
    "mini benchmarks without their curriculum": (["data.curriculum=null"], ["curriculum", "mini_gsm8k"]),
    "no source at all": (["data.curriculum=null", "data.benchmarks=[]", "evals.suites=[]", "data.sources=[]"], ["nothing to train on"]),
    "a source without its path": (["data.sources=[{kind: files}]"], ["data.sources.0", "`path`"]),
    "an answer longer than the context": (["align.max_new_tokens=160"], ["align.max_new_tokens=160", "model.context_tokens=160"]),
    "a reward model without a chat model": (["sft=null", "align=null"], ["reward is given and sft is not", "remove reward"]),
    "an encoder that is to chat": (["pretrain.objective=masked"], ["objective is masked", "sft, reward, align, evals"]),
    "weights to begin from and dimensions too": (["model.init_from=models:/x@champion"], ["init_from='models:/x@champion' brings its own dimensions", "hidden_size"]),
    "no dimensions at all": (["model={}"], ["hidden_size and layers not given", "init_from"]),
    "an inverse square root without warm-up": (["pretrain.schedule=inverse_sqrt", "pretrain.warmup_steps=0"], ["inverse_sqrt", "Give warmup_steps"]),
    "a --set without a value": (["sft.steps"], ["--set", "a.b=value"]),
    "a --set below a number": (["seed.x=1"], ["`seed` is not a section"]),
    "a name that cannot be a folder": (["data.name=../up"], ["data.name"]),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: c)
def test_bad_recipes_end_with_one_message_that_says_what_and_what_to_do(case: str) -> None:
    sets, words = REFUSED[case]
    with pytest.raises(BadInput) as caught:
        Recipe.load(TINY, sets)
    for word in words:
        assert word in str(caught.value)


def test_a_line_ends_where_its_sections_end() -> None:
    whole = Recipe.load(TINY)
    assert stages(whole) == ("data", "pretrain", "sft", "reward", "ppo", "evaluate", "release")
    verified = ["reward=null", "align.method=grpo", "align.rewards=[{kind: math}]", "align.prompts={source: chats}"]
    assert stages(Recipe.load(TINY, verified)) == ("data", "pretrain", "sft", "grpo", "evaluate", "release")
    assert stages(Recipe.load(TINY, ["align=null"])) == ("data", "pretrain", "sft", "reward", "evaluate", "release")
    assert stages(Recipe.load(TINY, ["sft=null", "reward=null", "align=null"])) == ("data", "pretrain", "evaluate", "release")
    assert stages(Recipe.load(TINY, ["sft=null", "reward=null", "align=null", "evals=null"])) == ("data", "pretrain")


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["reward=null"], "align.rewards asks for a reward model and the section reward is not given"),
        (["align.safety={limit: 0}"], "align.safety asks for a cost model and the section cost is not given"),
        (["align.method=sarsa"], "align: there is no method 'sarsa'.*one of ppo, grpo, rloo"),
        (["align.method=null"], "align: .*method.* to one of ppo"),
        (["reward.dimension=cost"], "reward.dimension is cost: this section is for preference"),
        (["align={method: ipo, steps: 9, batch_size: 2, learning_rate: 1e-4, warmup_steps: 1, label_smoothing: 0.1}"], "label_smoothing is dpo's"),
        (["align={method: orpo, steps: 9, batch_size: 2, learning_rate: 1e-4, warmup_steps: 1, reference_free: true}"], "orpo has no reference"),
        (["align={method: kto, steps: 9, batch_size: 2, learning_rate: 1e-4, warmup_steps: 1, sft_weight: 1}"], "sft_weight is for dpo and ipo"),
        (["reward.ranking=plackett_luce", "reward.margin=1"], "margin is for pairs"),
        (["cost={dimension: cost, centring: 0.1, steps: 9, batch_size: 2, learning_rate: 1e-4, warmup_steps: 1}"], "dimension cost has a loss of its own, and centring"),
        (["sft.lora={}", "sft.train_layers=norm"], "they contradict each other"),
        (["sft.task={kind: classification}"], "sft.task gives the model another head"),
        (["align.rewards=[{kind: format}]"], "needs `pattern`"),
    ],
)
def test_post_training_that_cannot_work_is_refused_at_the_door(sets: list[str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Recipe.load(TINY, sets)


def test_resources_are_read_as_key_and_value() -> None:
    assert Resources.parse(2, ["processes=4", "strategy=fsdp", "compile=true"]) == Resources(threads=2, processes=4, strategy="fsdp", compile=True)
    for given, words in (("proceses=4", "Did you mean `processes`"), ("processes=0", "greater than 0"), ("processes", "--on processes=2")):
        with pytest.raises(BadInput, match=words):
            Resources.parse(0, [given])


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        Recipe.load(TINY, ["sft.steps=0", "reward.batch_size=no", "colour=red"])
    for where in ("sft.steps", "reward.batch_size", "colour"):
        assert where in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"name: [", "not readable YAML"), (b"- a\n- b\n", "holds list"), (b"\xff\xfe\x00", "not readable YAML"), (b"", "holds NoneType")],
    ids=["broken YAML", "a list", "not UTF-8", "empty"],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=words):
        Recipe.load(path)


def test_a_recipe_that_does_not_exist_names_those_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(BadInput, match=r"recipes/tiny\.yaml"):
        Recipe.load("recipes/tinny.yaml")


def test_every_field_of_every_section_says_what_it_is() -> None:
    """The same sentence is the editor's help and the text of the form in the Prefect UI."""
    schema = Recipe.model_json_schema()
    silent = [f"{name}.{key}" for name, section in schema["$defs"].items() for key, field in section.get("properties", {}).items() if not field.get("description")]
    assert not silent
