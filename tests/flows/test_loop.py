"""The loop of human feedback, closed: what is pure of it here; and, slowly, all of it on a small line, with people at the page in Chromium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.feedback.people import in_browser
from components.feedback.people.opinions import said
from components.feedback.people.store import Revision, Store
from components.schema.config import BadInput
from components.schema.jobs import Run, line
from components.schema.recipe import Recipe, Resources
from flows.forecast import placeholder
from flows.loop import Asked, Line, begin, looped, names, standing
from flows.loop_report import markdown, picture, rows
from tests.flows.project import ROOT, Project

# The tiny recipe, small enough for minutes and large enough to speak: it learns the ways of talking that the rule is about.
SMALL = (
    "data.sources=[]",
    "data.curriculum={seed: 1, documents: 1000, chats: 6000, preferences: 1500, benchmark_items: 8}",
    "data.benchmarks=[]",
    "data.tokenizer.vocab_size=512",
    "pretrain={steps: 150, batch_size: 8, learning_rate: 3.0e-3, warmup_steps: 20, heldout_sequences: 8}",
    "sft={steps: 500, batch_size: 6, learning_rate: 2.0e-3, warmup_steps: 30, heldout_chats: 32}",
    "reward={steps: 120, batch_size: 12, learning_rate: 5.0e-4, warmup_steps: 10, heldout_pairs: 50}",
    "align.iterations=10",
    "align.heldout_prompts=32",
    "evals=null",
)


def between(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


FIGURES: dict[str, Any] = {
    "recipe": "recipes/tiny.yaml", "models": {"chat": "sft-1", "reward": "reward-1", "policy": "ppo-1"}, "rule": {"name": "plain", "says": "the plainer the better", "unit": "marks an answer"},
    "annotators": 4, "questions": 20, "noise": 0.1, "seed": 1, "rankings": {"kept": 40, "questions": 20, "overlap": 2, "alpha": 0.8126, "by_annotator": []},
    "export": {"folder": "data/feedback/x", "pairs": 43, "right": 0.953}, "trained": {"reward": "reward-2", "ppo": "ppo-2"}, "align": {"kl": 0.31, "kl_stderr": 0.05, "reward_before": 1},
    "reward_model": {"prompts": 60, "pairs": 150, "before": between(0.08, 0.03), "after": between(0.97, 0.02), "gain": between(0.89, 0.04)},
    "answers": {"prompts": 100, "answers_each": 4, "chat": between(0.8, 0.1), "policy": between(1.2, 0.1), "looped": between(0.2, 0.05), "moved": between(-0.6, 0.1)},
    "characters": {"chat": 40.2, "policy": 51.0, "looped": 33.7}, "samples": [{"prompt": "A | B\nC?", "chat": "Yes! " * 60, "policy": "Yes!", "looped": "Yes."}], "seconds": {"asked": 4.2},
}  # fmt: skip


def test_only_what_people_said_is_new_in_the_line() -> None:
    recipe = Recipe.load(ROOT / "recipes/tiny.yaml")
    again = looped(recipe, Path("data/feedback/tiny-loop"))
    before, after = (line(one, placeholder(), Run()) for one in (recipe, again))
    assert {name for name in before if before[name].config == after[name].config} == set(before), "the sections are the recipe's own"
    assert again.data.name == "tiny-loop" and again.data.curriculum.preferences == 0 and again.data.preferences[0].path == "data/feedback/tiny-loop/preferences"
    kept = {"name", "preferences", "curriculum"}
    assert again.data.model_dump(exclude=kept) == recipe.data.model_dump(exclude=kept) and again.data.curriculum.model_dump(exclude={"preferences"}) == recipe.data.curriculum.model_dump(exclude={"preferences"})


def test_a_line_that_is_not_there_is_told_before_anything_starts(tmp_path: Path) -> None:
    recipe = Recipe.load(ROOT / "recipes/tiny.yaml")
    with pytest.raises(BadInput, match=r"no sections sft, reward and align"):
        standing(Path("x.yaml"), recipe.model_copy(update={"align": None}), Resources())
    with pytest.raises(BadInput, match=r"section cost.*simulated people flag none"):
        standing(Path("x.yaml"), recipe.model_copy(update={"cost": recipe.reward}), Resources())


def test_a_folder_keeps_what_was_asked_for_and_refuses_anything_else(tmp_path: Path) -> None:
    jobs = line(recipe := Recipe.load(ROOT / "recipes/tiny.yaml"), placeholder(), Run())
    stands = Line(recipe, Path("recipes/tiny.yaml"), jobs["sft"], jobs["reward"], jobs["ppo"], 40)
    asked = Asked("plain", 4, 150, 0.1, 1)
    begin(asked, stands, tmp_path / "out")
    begin(asked, stands, tmp_path / "out")
    with pytest.raises(BadInput, match=r"begun with other options.*Take another folder: --out"):
        begin(asked._replace(rule="shorter"), stands, tmp_path / "out")


def test_everybody_has_a_name_of_their_own() -> None:
    assert len(set(names(30))) == 30 and names(2) == ["Ada", "Bo"]


def test_the_report_says_each_figure_with_its_interval_and_draws_it(tmp_path: Path) -> None:
    found = dict(rows(FIGURES))
    assert found["reward model agrees with the rule, before"] == "8.0% (5.0% to 11.0%)" and found["moved from the chat model by"] == "-0.60 (-0.70 to -0.50)"
    assert found["pairs exported; in the rule's order"] == "43; 95.3%" and found["KL from the chat model, nats an answer"] == "0.31 ± 0.05" and "40, 51, 34" in found.values()
    text = markdown(FIGURES)
    table = next(one for one in text.splitlines() if one.startswith("| A \\| B / C?"))
    assert table.count(" | ") == 3 and len(table) < 300 and all(value in text for value in found.values())
    picture(FIGURES, tmp_path / "loop.png")
    assert 5_000 < (tmp_path / "loop.png").stat().st_size < 120_000


@pytest.mark.parametrize(("missing", "install"), [("find_spec", r"pip install 'modelyard\[dev\]'"), ("shutil.which", r"infra/debian.sh browser")])
def test_without_a_browser_one_is_told_what_to_install(missing: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_browser, "find_spec", lambda name: "there")
    monkeypatch.setattr(f"components.feedback.people.in_browser.{missing}", lambda name: None)
    with pytest.raises(BadInput, match=install):
        in_browser.require()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_people_rank_in_a_browser_a_reward_model_learns_their_rule_and_a_policy_follows_it(tmp_path: Path) -> None:
    try:
        in_browser.require()
    except BadInput as problem:
        pytest.skip(str(problem))
    project = Project.copy_to(tmp_path / "project")
    asked = ["recipes/tiny.yaml", *(word for one in SMALL for word in ("--set", one)), "--threads", "1"]
    refused = project.run("feedback", "loop", *asked, code=2).stderr
    assert "Run first: modelyard run recipes/tiny.yaml" in refused or "is not current" in refused
    project.run("run", *asked, timeout_s=1500)
    out = tmp_path / "out"
    told = project.run("feedback", "loop", *asked, "--questions", "60", "--out", str(out), timeout_s=1500).stdout
    figures = json.loads((out / "report.json").read_text())
    store = Store.open(f"sqlite:///{out}/people.db")
    kept = store.read(lambda session: said(session, "tiny-loop"))
    assert len(kept) == figures["rankings"]["kept"] == 2 * figures["rankings"]["questions"] and len({(one.item.id, one.annotator) for one in kept}) == len(kept)
    assert store.read(lambda session: session.query(Revision).count()) == len(kept), "each arrived once"
    assert figures["reward_model"]["gain"]["low"] > 0 and figures["reward_model"]["after"]["low"] > 0.5
    assert figures["answers"]["moved"]["high"] < 0
    assert "report.md" in told and {"report.md", "loop.png", "page.png", "recipe.yaml", "people.db"} <= {path.name for path in out.iterdir()}
