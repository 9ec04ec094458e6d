"""Identities and records: what changes them, what must not, and what damage is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from components.launch import verdict
from components.schema import jobs, records
from components.schema.config import BadInput
from components.schema.jobs import Job, Run
from components.schema.recipe import Recipe, Resources
from components.schema.records import Artifact, Dataset, File, Part, Record, file_md5

TINY = Path(__file__).parents[2] / "recipes" / "tiny.yaml"


@pytest.fixture
def dataset() -> Dataset:
    return Dataset(name="tiny", **{name: Part(path=f"data/tiny/{name}", identity=name * 2) for name in ("tokenizer", "tokens", "mix", "chats", "preferences", "benchmarks", "overlap", "card")})


def identities(dataset: Dataset, *sets: str, run: Run | None = None) -> dict[str, str]:
    recipe = Recipe.load(TINY, sets)
    return {name: job.identity for name, job in jobs.line(recipe, dataset, run or Run(seed=recipe.seed)).items()}


def changed(dataset: Dataset, *sets: str) -> list[str]:
    before, after = identities(dataset), identities(dataset, *sets)
    return [name for name in before if before[name] != after[name]]


def test_a_change_reruns_its_stage_and_what_follows_from_it(dataset: Dataset) -> None:
    assert changed(dataset, "align.kl_coef=0.3") == ["ppo", "evaluate", "release"]
    assert changed(dataset, "reward.steps=121") == ["reward", "ppo", "evaluate", "release"]
    assert changed(dataset, "gate.policy.margin=0.1") == ["release"]
    assert changed(dataset, "evals.limit=5") == ["evaluate", "release"]
    assert changed(dataset, "name=other") == []
    assert changed(dataset, "seed=2") == ["pretrain", "sft", "reward", "ppo", "evaluate", "release"]


def test_hardware_and_tracking_never_change_an_identity(dataset: Dataset) -> None:
    assert identities(dataset) == identities(dataset, run=Run(seed=1, resources=Resources(threads=7), parent_run_id="x", recipe_name="y"))


def test_a_job_keeps_its_identity_on_the_way_to_its_process(dataset: Dataset) -> None:
    """As YAML, and small numbers too: 5e-05 written as JSON would come back as text."""
    recipe = Recipe.load(TINY, ["align.learning_rate=0.00005"])
    for job in jobs.line(recipe, dataset, Run(seed=1)).values():
        assert Job.model_validate(yaml.safe_load(yaml.safe_dump(job.model_dump(mode="json")))).identity == job.identity


def test_new_chats_rerun_sft_but_not_pretraining(dataset: Dataset) -> None:
    moved = dataset.model_copy(update={"chats": Part(path="data/tiny/chats", identity="other")})
    assert identities(dataset)["pretrain"] == identities(moved)["pretrain"]
    assert identities(dataset)["sft"] != identities(moved)["sft"]


def test_a_revision_bump_reruns_the_stage(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identities(dataset)
    monkeypatch.setitem(records.REVISIONS, "sft", 99)
    after = identities(dataset)
    assert before["pretrain"] == after["pretrain"] and before["sft"] != after["sft"]


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job whose record and one file stand."""
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path))
    job = Job(stage="sft", config={"x": 1}, inputs={"base": Artifact(path="somewhere", identity="b")})
    job.folder.mkdir(parents=True)
    weights = job.folder / "model.safetensors"
    weights.write_bytes(b"12345678")
    record = Record(
        stage="sft", identity=job.identity, revision=1, config=job.config, inputs={"base": "b"},
        files={weights.name: File(md5=file_md5(weights), size=8)}, figures={"loss": 1.5}, execution={"seconds": 3.0},
    )  # fmt: skip
    record.write(job.folder)
    return job


def test_a_whole_record_is_reused(finished: Job) -> None:
    assert verdict(finished).action == "reuse"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"12345679", "other bytes"), (b"1234", "4 bytes instead of 8"), (None, "missing")],
    ids=["one bit flipped", "cut short", "deleted"],
)
def test_a_damaged_file_is_noticed_and_the_stage_runs_again(finished: Job, content: bytes | None, words: str) -> None:
    path = finished.folder / "model.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    assert verdict(finished).action == "run" and words in verdict(finished).reason


@pytest.mark.parametrize("text", ["", "{", '{"stage": "sft"}', "\x00"])
def test_a_damaged_record_says_which_and_what_to_do(finished: Job, text: str) -> None:
    (finished.folder / "record.json").write_text(text)
    with pytest.raises(BadInput, match=r"record\.json is damaged.*only this stage is redone"):
        Record.read(finished.folder)
    assert verdict(finished).action == "run"


def test_times_and_speeds_are_not_part_of_a_records_hash(finished: Job) -> None:
    record = Record.read(finished.folder)
    assert record.model_copy(update={"execution": {"seconds": 99}}).hash == record.hash
    assert record.model_copy(update={"figures": {"loss": 1.6}}).hash != record.hash
