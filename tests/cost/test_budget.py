"""What a run may cost, over all its stages and attempts: who is stopped, when, and with which words."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from components import stages
from components.cost import budget, ledger
from components.cost.budget import Bill, payer, told
from components.launch import launch
from components.schema.config import BadInput, BudgetSpent
from components.schema.cost import Usage, of_record
from components.schema.jobs import Job, Run
from components.schema.recipe import Resources
from components.schema.records import Artifact, Record


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELYARD_METER_SECONDS", "0.05")
    (tmp_path / "prices.yaml").write_text("{currency: EUR, source: 'a test: an hour of a core costs 3600', per_cpu_hour: 3600}")  # an EUR for each busy second


def job(tmp_path: Path, limit: float | None = None, spent: float = 0.0, **config: object) -> Job:
    resources = Resources(budget=limit, prices=str(tmp_path / "prices.yaml"), accelerator="cpu")
    return Job(stage="sft", config={"sft": config}, run=Run(recipe_name="tiny", recipe_hash="0123456789abcdef", resources=resources, spent=spent))


def burn_until(out: Path, seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end and not told(out):
        pass


def test_a_stage_is_told_when_the_runs_budget_is_spent(tmp_path: Path) -> None:
    """The limit is what this process and its children have used already, and 8 from elsewhere, and a little. What is said is what the meter had seen by then."""
    limit = 8 + sum(os.times()[:4]) + 0.3
    with Bill(job(tmp_path, limit, spent=8.0), tmp_path) as bill:
        burn_until(tmp_path, 20)
        words = told(tmp_path)
    said = re.fullmatch(r"budget: tiny has cost (\d+\.\d+) EUR so far and may cost (\d+\.\d+) EUR, so sft was stopped\. What was done is kept.*", words or "")
    assert said and float(said[2]) == pytest.approx(limit, abs=0.01)
    assert limit - 0.01 <= float(said[1]) <= 8 + bill.closed()["amount"] + 0.01


def test_without_a_budget_nothing_is_ever_told(tmp_path: Path) -> None:
    with Bill(job(tmp_path), tmp_path):
        burn_until(tmp_path, 0.3)
    assert told(tmp_path) is None


def test_earlier_attempts_count_each_for_the_run_that_made_them(tmp_path: Path) -> None:
    mine = payer(job(tmp_path).run)
    ledger.write(tmp_path, "killed", mine, Usage(cpu_seconds=30, seconds=60, memory_mb=99_999))
    ledger.write(tmp_path, "of-another-recipe", "other-00000000", Usage(cpu_seconds=7))
    with pytest.raises(BudgetSpent, match=r"has cost 30.00 EUR so far and may cost 20.00 EUR, so sft was not started.*--budget 60"):
        Bill(job(tmp_path, 20), tmp_path).__enter__()
    with Bill(job(tmp_path, 10_000), tmp_path) as bill:
        pass
    closed = bill.closed()
    assert closed["by_run"]["other-00000000"]["cpu_seconds"] == 7
    assert of_record({"cost": closed})[mine].cpu_seconds == pytest.approx(30 + bill.meter.used.cpu_seconds)
    assert closed["amount"] == pytest.approx(37 + bill.meter.used.cpu_seconds)
    assert closed["attempts"] == 3 and closed["memory_mb"] == 99_999


def test_a_raised_budget_takes_the_word_back(tmp_path: Path) -> None:
    (tmp_path / budget.TOLD).parent.mkdir(parents=True)
    (tmp_path / budget.TOLD).write_text("budget: spent")
    with Bill(job(tmp_path, 10_000), tmp_path):
        assert told(tmp_path) is None


def test_what_does_not_train_ends_with_its_next_sign_of_progress(tmp_path: Path) -> None:
    heard = []
    tell = budget.ending(tmp_path, heard.append)
    tell({"event": "progress", "step": 1})
    (tmp_path / budget.TOLD).parent.mkdir(parents=True)
    (tmp_path / budget.TOLD).write_text("budget: spent")
    tell({"event": "note", "text": "a word about it"})
    with pytest.raises(BudgetSpent, match=r"^budget: spent$"):
        tell({"event": "progress", "step": 2})
    assert len(heard) == 3


def test_the_words_of_a_training_process_are_known_for_what_they_are(tmp_path: Path) -> None:
    """Of several processes only the text of an error comes through."""
    with pytest.raises(BudgetSpent), Bill(job(tmp_path), tmp_path):
        (tmp_path / budget.TOLD).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / budget.TOLD).write_text("budget: spent")
        raise BadInput("budget: spent")
    with pytest.raises(BadInput) as other, Bill(job(tmp_path), tmp_path):
        raise BadInput("training: the loss diverged")
    assert not isinstance(other.value, BudgetSpent)


def test_a_budget_changes_no_identity(tmp_path: Path) -> None:
    assert job(tmp_path).identity == job(tmp_path, 5.0, spent=3.0).identity
    assert job(tmp_path).identity != job(tmp_path, steps=3).identity


def test_nothing_is_launched_once_the_budget_is_spent_but_what_stands_is_reused(tmp_path: Path) -> None:
    spent = job(tmp_path, 5.0, spent=5.0)
    with pytest.raises(BudgetSpent, match="sft was not started"):
        launch(spent)
    spent.folder.mkdir(parents=True)
    Record(stage="sft", identity=spent.identity, revision=1, config={}, inputs={}, files={}, figures={}).write(spent.folder)
    assert launch(spent)[1].action == "reuse"


@pytest.mark.slow
def test_a_stage_that_fails_leaves_what_it_used_in_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the stage contract itself, with a loop of a second that ends in bad input."""

    def fails(job: Job, out: Path, run_id: str) -> None:
        burn_until(out, 1.0)
        raise BadInput("sft: no such thing")

    monkeypatch.setitem(stages.RUN, "sft", fails)
    monkeypatch.setitem(stages.WORKS_WITH, "sft", "components.schema.jobs")
    one = job(tmp_path).model_copy(update={"inputs": {"base": Artifact(path=str(tmp_path), identity="b")}})
    before = time.process_time()
    with pytest.raises(BadInput, match="no such thing"):
        stages.run("sft", one)
    used = ledger.by_run(one.folder.with_name(one.folder.name + ".partial"))[payer(one.run)]
    assert used.cpu_seconds >= before + 1.0
