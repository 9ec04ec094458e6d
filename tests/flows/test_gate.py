"""The gate's commands, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from components.schema.records import File, Record, file_md5
from flows.cli import app


def evaluation(folder: Path, won: int) -> Path:
    """An evaluate stage's folder: 400 items, of which `won` more are right than with 0."""
    path = folder / "items/chat/quiz.parquet"
    path.parent.mkdir(parents=True)
    scores = np.repeat([1.0, 0.0], [200 + won, 200 - won])
    pd.DataFrame({"task": "quiz", "id": range(400), "item": [f"{i:04d}" for i in range(400)], "score": scores, "overlap": np.nan}).to_parquet(path)
    figures = {"scores": {"base": {}, "chat": {"quiz": {"metric": "acc", "score": float(scores.mean()), "stderr": 0.02, "items": 400}}}}
    files = {"items/chat/quiz.parquet": File(md5=file_md5(path), size=path.stat().st_size)}
    Record(stage="evaluate", identity="0" * 32, revision=1, config={}, inputs={}, files=files, figures=figures).write(folder)
    return folder


def said(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["gate", *map(str, arguments)], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done.output


def test_a_policy_can_be_tried_on_two_evaluations(tmp_path: Path) -> None:
    old, new = evaluation(tmp_path / "old", 0), evaluation(tmp_path / "new", 30)
    shown = said("decide", new, "--champion", old)
    assert "quiz      0.500       0.575      +0.075" in shown and "promote  promoted: quiz is better: 0.500 -> 0.575" in shown.replace("\n", " ")
    assert "hold" in said("decide", old, "--champion", new) and "first release" in said("decide", new, "--role", "chat")


def test_a_policy_and_a_noise_floor_come_from_files(tmp_path: Path) -> None:
    old, new = evaluation(tmp_path / "old", 0), evaluation(tmp_path / "new", 30)
    (tmp_path / "policy.yaml").write_text("improvement: {quiz: 0.07}\n")
    (tmp_path / "noise.json").write_text(json.dumps({"suites": {"quiz": {"spread": 0.2, "repeats": 5}}}))
    assert "was not shown to be better by more than 0.07" in said("decide", new, "--champion", old, "--policy", tmp_path / "policy.yaml").replace("\n", " ")
    assert "a person is asked" in said("decide", new, "--champion", old, "--noise", tmp_path / "noise.json").replace("\n", " ")


def test_power_is_told_for_suites_of_given_sizes_and_of_an_evaluation(tmp_path: Path) -> None:
    rows = {line.split()[0]: line for line in said("power", "--suite", "gsm8k=1319:0.4:0.2", "--trials", 60).splitlines() if line.strip()[:1] in "+-"}
    assert float(rows["+0.100"].split()[1].rstrip("%")) > 90 and float(rows["-0.100"].split()[1].rstrip("%")) == 0
    assert "a change of quiz" in said("power", "--report", evaluation(tmp_path / "old", 0), "--trials", 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["power"], "no suite is given, so nothing can be simulated. Write --suite gsm8k=1319"),
        (["power", "--suite", "gsm8k"], "'gsm8k' is not NAME=ITEMS[:SCORE[:DISAGREEMENT]]"),
        (["power", "--suite", "gsm8k=10", "--only", "mmlu"], "--only mmlu is none of the suites"),
        (["power", "--suite", "gsm8k=0"], "gsm8k with 0 items"),
        (["decide", "nowhere"], "nowhere/record.json does not exist"),
        (["power", "--suite", "a=9", "--policy", "nowhere.yaml"], "policy: nowhere.yaml cannot be read"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_message(arguments: list[str], message: str) -> None:
    assert message in said(*arguments, code=2).replace("\n", " ")
