"""`modelyard feedback ask`, `agreement` and `export` as a user types them: answers of a model, rankings, and a dataset that DVC keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.feedback.people import assignment
from components.feedback.people.asking import ask
from components.feedback.people.store import Store
from components.schema.people import AskConfig
from tests.feedback.conftest import make_model
from tests.feedback.people import claims, person, question, say
from tests.flows.project import Project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.copy_to(tmp_path_factory.mktemp("people") / "project")


def test_from_prompts_to_a_versioned_dataset(project: Project, tmp_path: Path) -> None:
    folder, model = project.folder, make_model(tmp_path / "chat")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Tell me about {i}."}) + "\n" for i in range(6)))
    (folder / "gold.jsonl").write_text(json.dumps({"prompt": "2 + 2?", "chosen": "4", "rejected": "fish"}) + "\n")
    words = ("feedback", "ask", "prompts.jsonl", "--models", str(model), "--answers", "3", "--overlap", "2", "--gold", "gold.jsonl", "--gold-share", "0.5", "--max-new-tokens", "8")
    assert "7 new questions in people (6 and 1 with a known order were given); each for 2 people" in project.run(*words).stdout
    assert "0 new questions" in project.run(*words).stdout
    assert "nobody has ranked anything in 'people'" in project.run("feedback", "export", code=2).stderr

    store = Store.open(f"sqlite:///{folder}/.modelyard/feedback/people.db")
    for name, ranks in (("Ada", [1, 2, 3]), ("Bo", [1, 2, 2])):
        who = person(store, name)
        for claim in claims(store, who, ahead=20):
            say(store, who, claim, ranks[: len(claim.shown)], f"{name}-{claim.item_id:08}")
    told = project.run("feedback", "agreement").stdout
    assert "12 rankings of 6 questions by 2 people" in told and "Right on known questions: 1.000 over 2 rankings" in told
    first = project.run("feedback", "export").stdout
    assert "18 pairs of 6 questions in data/feedback/people" in first
    version = (folder / "data/feedback/people.dvc").read_text()
    project.run("feedback", "export", "people", "--min-gold", "0.5")
    assert (folder / "data/feedback/people.dvc").read_text() != version, "what was asked for stands in the report"
    project.run("feedback", "export")
    assert (folder / "data/feedback/people.dvc").read_text() == version, "the same opinions are the same version"


def test_what_a_critic_made_is_not_replaced(project: Project) -> None:
    store = Store.open(f"sqlite:///{project.folder}/.modelyard/feedback/people.db")
    ask(store, AskConfig(name="judged", gold_share=0.0), [question(0)])
    who = person(store, "Ada")
    (claim,) = store.write(lambda session: assignment.claims(session, who, "judged", 1, 0.0))
    say(store, who, claim, [1, 2, 3], "judged-0001")
    (project.folder / "data/feedback/judged").mkdir(parents=True)
    assert "data/feedback/judged was made by something else (a critic)" in project.run("feedback", "export", "judged", code=2).stderr
