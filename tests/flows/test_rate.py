"""The stage behind `modelyard rate`, with models that never learnt anything and an endpoint that follows a rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.schema.config import BadInput
from components.schema.jobs import Run
from components.schema.rating import RatingConfig
from components.schema.recipe import Resources
from components.stages import RUN
from flows.rate import job
from tests.feedback.conftest import make_model
from tests.feedback.server import serving
from tests.flows.project import Project

RUNNING = Run(resources=Resources(threads=1))


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def asked(chat_model: Path, tmp_path: Path) -> dict[str, Any]:
    """Two names for one model, which answers alike as long as nothing is sampled."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Tell me about {i}."}) + "\n" for i in range(6)))
    return {"name": "two", "models": {"one": str(chat_model), "other": str(chat_model)}, "prompts": str(tmp_path / "prompts.jsonl"), "max_new_tokens": 8}


def test_an_endpoint_judges_in_both_orders_and_equal_answers_cost_nothing(asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def longer(messages: list[dict[str, str]], body: dict[str, Any]) -> tuple[str, float | None]:
        first, second = (
            messages[-1]["content"].partition("Answer A: ")[2].partition("\n\nAnswer B: ")[::2] if "Answer B" in messages[-1]["content"] else ("", "")
        )
        return ("A" if len(first) > len(second.partition("\n\nWhich answer is better?")[0]) else "B"), None

    with serving(longer) as server:
        config = RatingConfig.model_validate({**asked, "judge": {"critic": {"model": "judge", "url": server.url}}})
        alike = RUN["rate"](job(config, RUNNING), tmp_path, "")
        assert alike.figures["judge"]["draws"] == 1.0 and len(server.requests) == 1  # is it there at all
        assert alike.figures["ratings"]["one"]["rating"] == 0
        answers = tmp_path / "work/answers-other.json"
        answers.write_text(json.dumps([text + " and more of it" for text in json.loads(answers.read_text())]))
        unlike = RUN["rate"](job(config, RUNNING), tmp_path, "")
        assert len(server.requests) == 1 + 1 + 2 * 6
    assert unlike.figures["judge"] == {"comparisons": 6, "draws": 0.0, "longer_wins": 1.0, "unanswered": 0, "position_bias": 0.0, "orders_agree": 1.0}
    assert unlike.figures["ratings"]["other"]["wins"] == 1.0


def test_a_model_of_ours_judges(asked: dict[str, Any], chat_model: Path, tmp_path: Path) -> None:
    made = job(RatingConfig.model_validate({**asked, "temperature": 1.0, "judge": {"critic": {"model": str(chat_model)}}}), RUNNING)
    outcome = RUN["rate"](made, tmp_path / "out", "")
    assert outcome.figures["judge"]["comparisons"] == 6 and set(outcome.figures["ratings"]) == {"one", "other"}
    assert set(made.inputs) == {"model_one", "model_other", "prompts", "critic"}


@pytest.mark.slow
def test_the_command_writes_a_sheet_and_then_reads_what_people_say(asked: dict[str, Any], tmp_path: Path) -> None:
    project = Project.copy_to(tmp_path / "project")
    (project.folder / "rating.yaml").write_text(yaml.safe_dump({**asked, "temperature": 1.0, "judge": {"people": {}}}))
    first = project.run("rate", "rating.yaml")
    sheet = Path(first.stdout.split("Sheet to fill in: ")[1].strip())
    rows = [{**json.loads(line), "ranking": ["B", "A"]} for line in sheet.read_text().splitlines()]
    (project.folder / "filled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    second = project.run("rate", "rating.yaml", "--set", "judge.people.rankings=filled.jsonl")
    assert "| one |" in second.stdout and "Every comparison:" in second.stdout
    again = project.run("rate", "rating.yaml", "--set", "judge.people.rankings=filled.jsonl")
    assert "rate: reuse:" in again.stdout and "| one |" in again.stdout


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"models": {"one": "./nowhere", "other": "./nowhere"}}, "rating: models.one: './nowhere' is no folder here"),
        ({"prompts": "gone.jsonl"}, "rating: prompts names gone.jsonl, which is no file here"),
        ({"judge": {"people": {"rankings": "gone.jsonl"}}}, "rating: judge.people.rankings names gone.jsonl"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_asked(asked: dict[str, Any], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        job(RatingConfig.model_validate({**asked, "judge": {"people": {}}, **changed}), RUNNING)
