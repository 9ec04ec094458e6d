"""A training that is told to stop (its run's budget is spent) ends with a checkpoint, and goes on to the same bits."""

from pathlib import Path

import pytest

from components.schema.config import BudgetSpent
from components.training.trainer import Context
from tests.training.test_resume import in_one_go, outputs

WORDS = "budget: 5.00 EUR are spent"


def after(steps: int):
    """Says so from the look after this many steps on."""
    looks = iter(range(10**6))
    return lambda: WORDS if next(looks) >= steps - 1 else None


def newest(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[1] for path in (folder / "work").glob("step-*.ckpt"))


@pytest.mark.parametrize("stage", ["pretrain", "reward", "ppo"])
@pytest.mark.parametrize("step", [1, 3])
def test_a_run_that_was_stopped_by_its_budget_goes_on_to_the_same_bits_and_figures(line, stage, step, tmp_path):
    folder, whole = in_one_go(line, stage)
    notes = []
    with pytest.raises(BudgetSpent, match=WORDS):
        line.run(stage, tmp_path, Context(seed=5, stop=after(step), emit=notes.append))
    assert newest(tmp_path)[-1] == f"{step:08d}", "the step it stopped after is saved, whatever its number"
    assert any("a checkpoint was written after" in note.get("text", "") for note in notes)
    assert not (tmp_path / "model.safetensors").exists()
    again = line.run(stage, tmp_path, Context(seed=5))
    assert again.figures == whole.figures
    assert outputs(tmp_path) == outputs(folder)


def test_a_run_that_is_told_so_after_its_last_step_ends_as_if_nothing_was(line, tmp_path):
    """What follows, measuring and saving, takes less than coming back for it."""
    folder, whole = in_one_go(line, "reward")
    steps = len((folder / "curve.jsonl").read_text().splitlines())
    assert line.run("reward", tmp_path, Context(seed=5, stop=after(steps))).figures == whole.figures
