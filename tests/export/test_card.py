"""The card: what the records say, and not a word more; read from a real MLflow store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.export import card
from components.export.story import Story, data_here, story
from components.registry import models
from components.registry.tracking import close_stage, open_stage
from components.schema.config import BadInput
from components.schema.export import ExportConfig
from components.schema.records import Record, identity_of
from tests.registry.conftest import checkpoint, empty_database, home  # noqa: F401

COLLECT, TOKENS, BENCHMARKS = (letter * 32 + ".dir" for letter in "abc")
LOCK = f"""
schema: '2.0'
stages:
  collect@web:
    cmd: python
    params:
      params.yaml:
        datasets.web.pins.documents: {{notes.txt: 0123abcd}}
        datasets.web.sources: [{{kind: files, path: notes.txt, licence: CC-BY-4.0}}]
    outs: [{{path: data/web/collect, md5: {COLLECT}, size: 2500000, nfiles: 3}}]
  tokens@web:
    cmd: python
    deps: [{{path: data/web/collect/train, md5: {"e" * 32}.dir}}]
    outs: [{{path: data/web/tokens, md5: {TOKENS}, size: 10, nfiles: 2}}]
"""
SCORES = {
    "mini_mmlu": {"metric": "acc", "score": 0.75, "stderr": 0.05, "items": 80, "truncated": 3, "clean": {"score": 0.74, "stderr": 0.05, "items": 78}, "contaminated": {"score": 1.0, "stderr": 0.0, "items": 2}},
    "pile": {"metric": "word_perplexity", "score": 21.5, "stderr": 0.5, "items": 100, "truncated": 0},
}  # fmt: skip
COST = {"hours": 2.0, "kwh": 0.5, "kwh_estimated": 0.25, "amount": 1.5, "currency": "EUR", "device": "A processor"}


def made(stage: str, folder: Path, config: dict[str, Any], figures: dict[str, Any], execution: dict[str, Any] | None = None, **inputs: str) -> str:
    """A finished stage's run, as the stage leaves it; gives its identity."""
    identity = identity_of(stage, config, inputs)
    lineage = {"git_commit": "1" * 40, "git_patch": "", "git_untracked": [], "installed": [], "packages": {}, "pins": {"dvc.lock": LOCK}, "python": "3.11.7"}
    run_id = open_stage(None, stage, identity, {}, lineage)
    record = Record(stage=stage, identity=identity, revision=1, config=config, inputs=inputs, files={}, figures=figures, execution=execution or {})
    (folder / stage).mkdir(exist_ok=True)
    record.write(folder / stage)
    close_stage(run_id, "FINISHED", {}, folder / stage / "record.json", record)
    return identity


@pytest.fixture
def told(home: Path, checkpoint: Path, tmp_path: Path) -> Story:  # noqa: F811
    section = {"architecture": "llama", "layers": 2, "hidden_size": 64, "context_tokens": 128}
    base = made("pretrain", tmp_path, {"model": section, "seed": 7}, {"parameters": 1_234_567, "tokens_seen": 99_000, "heldout_loss_before": 7.0, "heldout_loss_after": 2.5}, {"cost": COST}, tokens=TOKENS)
    figures = {"scores": {"base": SCORES}, "perplexity": {"base": {"perplexity": 12.5, "bits_per_byte": 1.25}}, "lm_eval": "0.4.13", "settings": {"chat_template": {"base": False}}}
    report = made("evaluate", tmp_path, {"evals": {}}, figures, base=base, benchmarks=BENCHMARKS)
    final = made("release", tmp_path, {"role": "base"}, {}, model=base, report=report)
    run_id = open_stage(None, "release", final, {}, {})
    models.release("tiny", checkpoint, run_id, base, {}, "promote", {"modelyard.recipe": "tiny", "modelyard.reason": "better <script>alert(1)</script> | on\nmini_mmlu"})
    return story("models:/tiny@champion")


def text(told: Story | None, **options: Any) -> str:
    return card.text(told, "models:/tiny/1", ExportConfig(to=options.pop("to", "card")), None, None, "", options.pop("licence", None))


def test_what_was_recorded_stands_in_the_card(told: Story) -> None:
    page = text(told)
    for words in (
        "1,234,567", "`models:/tiny/1` (challenger, champion)", "| mini_mmlu | acc | 0.7500 | 0.6452 to 0.8319 | 80 |", "| pile | word_perplexity | 21.5000 | 20.5200 to 22.4800 | 100 |",
        "perplexity 12.5", "2 of the 80 items", "| mini_mmlu | 2 | 1.0000 (2 items) | 0.7400 (78 items) |", f"| tokens@web | {TOKENS} | 10 |",
        "| notes.txt | 0123abcd | CC-BY-4.0 |", "| pretrain | held-out loss, nats a token | 7 | 2.5 | 2 | 0.5 | 1.5 | A processor |", "In all: 2 hours, 0.5 kWh, 1.5 EUR. 50% of the energy is estimated",
        "commit `111111111111`", "Seed 7", "at most 128 tokens", "No safety, truthfulness, bias or robustness probe was recorded", "mini_mmlu: 3", "modelyard reproduce models:/tiny/1", "@misc{tiny_1,",
    ):  # fmt: skip
        assert words in page, f"{words!r} is not in\n{page}"


def test_a_share_has_wilsons_interval_and_another_score_its_standard_errors(told: Story) -> None:
    share, other = told.scores
    z, n, k = 1.959964, 80, 60  # by hand: Wilson 1927
    middle, half = (k + z * z / 2) / (n + z * z), z / (n + z * z) * (k * (n - k) / n + z * z / 4) ** 0.5
    assert (share.low, share.high) == (pytest.approx(middle - half), pytest.approx(middle + half))
    assert (other.low, other.high) == (pytest.approx(21.5 - z * 0.5), pytest.approx(21.5 + z * 0.5))


def test_the_head_is_the_hubs_model_index_and_states_no_licence_that_nobody_gave(told: Story) -> None:
    head = yaml.safe_load(text(told).split("---")[1])
    (model,) = head["model-index"]
    assert model["name"] == "tiny 1" and [(r["dataset"]["type"], r["metrics"][0]["type"], r["metrics"][0]["value"]) for r in model["results"]] == [("mini_mmlu", "acc", 0.75), ("pile", "word_perplexity", 21.5)]
    assert "license" not in head and "licence | none stated" in text(told)
    given = text(told, licence="apache-2.0")
    assert yaml.safe_load(given.split("---")[1])["license"] == "apache-2.0" and "licence | apache-2.0" in given
    with pytest.raises(BadInput, match="is no name of a licence"):
        text(told, licence="free: [yes]")


def test_recorded_words_are_no_markup(told: Story) -> None:
    page = text(told)
    assert "<script" not in page and "better &lt;script>alert(1)&lt;/script> \\| on mini_mmlu" in page


def test_of_a_folder_nothing_is_said_that_nobody_recorded() -> None:
    page = card.text(None, "some/folder", ExportConfig(to="card"), None, None, "", None)
    assert "No records of it are kept" in page and all(word not in page for word in ("## Scores", "## Data", "## Training", "## Limits", "## Citation", "model-index"))


def test_the_licences_of_the_texts_are_told_where_the_data_is_still_that_version(told: Story, tmp_path: Path) -> None:
    assert told.licences == {} and "the data was not here when this page was written" in text(told)
    collect = tmp_path / "data/web/collect"
    collect.mkdir(parents=True)
    (collect / "counts.json").write_text(json.dumps({"by_licence": {"CC-BY-4.0": {"documents": 12, "bytes": 3400}, "unknown": {"documents": 5, "bytes": 9}}}))
    (tmp_path / "dvc.lock").write_text(LOCK)
    page = text(story("models:/tiny/1"))
    assert "| CC-BY-4.0 | 12 | 3,400 |" in page and "5 of the texts collected name no licence" in page
    (tmp_path / "dvc.lock").write_text(LOCK.replace(COLLECT, "9" * 32 + ".dir"))
    assert data_here(COLLECT, tmp_path) is None and story("models:/tiny/1").licences == {}


def test_a_version_that_was_registered_by_hand_has_no_card(home: Path, checkpoint: Path) -> None:  # noqa: F811
    models.register("byhand", checkpoint, open_stage(None, "notes", "0" * 32, {}, {}), {"modelyard.identity": "1" * 32})
    with pytest.raises(BadInput, match="keeps no record of the stage that made models:/byhand/1"):
        story("models:/byhand/1")
