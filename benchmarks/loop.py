"""The loop, closed: people rank on the page, a reward model learns from them, and a model is aligned with it.

    python -m benchmarks.loop                       # some ten minutes on two idle cores, of which making the tiny line is the half; Debian's Chromium is needed
    python -m benchmarks.loop --keep FOLDER         # where a home with the tiny line stands (MODELYARD_HOME), nothing of that is made again

The people are simulated, and everything else is real: questions made by `modelyard feedback ask`, the page in headless Chromium, ranked with keys,
`modelyard feedback export`, and a recipe that reads nothing but their pairs. Their rule, stated: the shorter answer is better, equal lengths are ties; and each
neighbouring pair of a ranking changes its places with the probability of --noise. What is measured is new to all: other prompts, other answers. Writes its section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, groupby, pairwise
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
import yaml

from benchmarks.results import machine, write_section
from components.feedback import prompts
from components.feedback.local import LocalModel
from components.models.scoring import reward_model
from components.training.agreement import compare
from tests.browser.conftest import CHROMIUM
from tests.browser.ranked import Ranked, Somebody
from tests.flows.project import ROOT, Project

RECIPE, DATASET, ANSWERS, LONGEST, UNSEEN = "recipes/tiny.yaml", "loop", 4, 40, 96


def loop(project: Project, asked: int, people: int, noise: float) -> dict[str, Any]:
    """Figures of one turn of the loop in a project. Errors: AssertionError with a command's output, where one fails."""
    before = stages(project, RECIPE, "align=null", "evals=null")
    ask = ("feedback", "ask", "data/tiny/preferences/train.jsonl", "--models", str(before["sft"]), "--answers", str(ANSWERS), "--into", DATASET)
    print(project.run(*ask, "--max-prompts", str(asked), "--max-new-tokens", str(LONGEST), "--gold-share", "0", "--overlap", "1", "--seed", "1").stdout.strip())
    began = time.monotonic()
    with Ranked(Path(project.env()["MODELYARD_HOME"])) as ranked:
        with ThreadPoolExecutor(people) as pool:
            done = list(pool.map(lambda number: person(ranked, f"simulated {number}", noise), range(people)))
        rankings = len(ranked.said_in(DATASET))
    seconds = time.monotonic() - began
    print(project.run("feedback", "export", DATASET).stdout.strip())
    after = stages(project, str(recipe(project)))
    assert after["sft"] == before["sft"], "base and chat model are those whose answers people saw"
    unseen = prompts.read(project.folder / "data/tiny/preferences/heldout.jsonl", UNSEEN)
    return {
        "asked": asked, "rankings": rankings, "shares": done, "ranking_seconds": seconds, "pairs": len((project.folder / f"data/feedback/{DATASET}/preferences/pairs.jsonl").read_text().splitlines()),
        "before": judged(before["reward"], before["sft"], unseen), "after": judged(after["reward"], before["sft"], unseen), "moved": moved(before["sft"], after["ppo"], unseen),
    }  # fmt: skip


def stages(project: Project, path: str, *sets: str) -> dict[str, Path]:
    """A recipe's line, run or reused: the folder of each stage."""
    words = ["run", path, *(word for one in sets for word in ("--set", one)), "--threads", "1", "--json"]
    summary = json.loads(project.run(*words, timeout_s=3600).stdout.splitlines()[-1])
    print(", ".join(f"{name} {row['status']}" for name, row in summary["stages"].items()), flush=True)
    return {name: Path(row["record"]).parent for name, row in summary["stages"].items()}


def recipe(project: Project) -> Path:
    """The tiny recipe with people's pairs as its only preferences."""
    whole = yaml.safe_load((project.folder / RECIPE).read_text())
    data = {**whole["data"], "name": DATASET, "preferences": [{"kind": "files", "path": f"data/feedback/{DATASET}/preferences"}]}
    data["curriculum"] = {**data["curriculum"], "preferences": 0}
    path = project.folder / "recipes" / f"{DATASET}.yaml"
    path.write_text(yaml.safe_dump({**whole, "name": DATASET, "data": data, "reward": {**whole["reward"], "heldout_pairs": 100}, "evals": None}, sort_keys=False))
    return path


# ---------------------------------------------------------------- people


def person(ranked: Ranked, name: str, noise: float) -> int:
    """One simulated person in a browser of their own, until nothing is left; how many questions they ranked."""
    from playwright.sync_api import sync_playwright

    luck, done = Random(name), 0
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        somebody = ranked.person(browser, name, dataset=DATASET)
        while has_question(somebody):
            somebody.order(*wanted(somebody.texts, noise, luck))
            done += 1
            somebody.next()
        browser.close()
    assert somebody.complaints == []
    return done


def has_question(somebody: Somebody) -> bool:
    """Whether there is a question on the screen, once the page knows."""
    somebody.page.locator("#list li, section.middle:has(button)").first.wait_for()
    return somebody.page.locator("#list li").count() > 0


def wanted(texts: Sequence[str], noise: float, luck: Random) -> tuple[list[str], set[str]]:
    """The rule, and its noise: the order that a person gives, and which answers are tied with the one before."""
    order = sorted(texts, key=len)
    for i in range(len(order) - 1):
        if luck.random() < noise:
            order[i], order[i + 1] = order[i + 1], order[i]
    return order, {later for sooner, later in pairwise(order) if len(sooner) == len(later)}


# ---------------------------------------------------------------- what came of it


def judged(reward: Path, writer: Path, asked: Sequence[Any]) -> dict[str, float]:
    """How often a reward model and the rule agree about answers that nobody has seen; its error counts answers to one prompt as one."""
    said = [LocalModel(writer, LONGEST, 1.0).write(asked, seed) for seed in range(100, 100 + ANSWERS)]
    rows = [(number, [*prompt, {"role": "assistant", "content": text}]) for texts in said for number, (prompt, text) in enumerate(zip(asked, texts, strict=True)) if text]
    scored = [(number, len(chat[-1]["content"]), score) for (number, chat), score in zip(rows, reward_model(reward)([chat for _, chat in rows]), strict=True)]
    pairs = [
        (number, *sorted((one, other)))
        for number, group in groupby(sorted(scored), key=lambda row: row[0])
        for one, other in combinations([row[1:] for row in group], 2)
        if one[0] != other[0]
    ]
    shorter, longer = (torch.tensor([pair[side][1] for pair in pairs], dtype=torch.float64) for side in (1, 2))
    found = compare(shorter, longer, groups=[pair[0] for pair in pairs])
    return {"pairs": len(pairs), "agrees": found["accuracy"], "stderr": found["accuracy_stderr"]}


def moved(before: Path, after: Path, asked: Sequence[Any]) -> dict[str, float]:
    """The aligned model beside the chat model it began as, by the rule: lengths, and how often it is the shorter one (a tie counts half)."""
    first, second = ([len(text or "") for text in LocalModel(folder, LONGEST, 1.0).write(asked, 200)] for folder in (before, after))
    wins = torch.tensor([0.5 if a == b else float(b < a) for a, b in zip(first, second, strict=True)], dtype=torch.float64)
    return {"characters_before": fmean(first), "characters_after": fmean(second), "wins": wins.mean().item(), "stderr": (wins.std() / len(wins) ** 0.5).item()}


def _table(found: dict[str, Any], people: int, noise: float) -> str:
    share = lambda row, key: f"{row[key]:.3f} ± {row['stderr']:.3f}"  # noqa: E731
    rows = {
        "rankings through the page": f"{found['rankings']} of {found['asked']} prompts, by {', '.join(map(str, found['shares']))}, in {found['ranking_seconds']:.0f} s",
        "pairs exported": found["pairs"],
        "reward model before (the curriculum's pairs): agrees with the rule on unseen pairs": f"{share(found['before'], 'agrees')} of {found['before']['pairs']}",
        "reward model after (people's pairs alone)": f"{share(found['after'], 'agrees')} of {found['after']['pairs']}",
        "answers to unseen prompts, characters: chat model, aligned model": f"{found['moved']['characters_before']:.1f}, {found['moved']['characters_after']:.1f}",
        "aligned model is better by the rule": share(found["moved"], "wins"),
    }
    head = f"{machine()}. {people} simulated people in Chromium; the shorter answer is better; neighbours change places with probability {noise}. PPO. Intervals are one standard error."
    return "\n".join([head, "", "| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=160, help="prompts that are asked about")
    parser.add_argument("--people", type=int, default=4, help="people at once")
    parser.add_argument("--noise", type=float, default=0.1, help="how often neighbours change places")
    parser.add_argument("--keep", type=Path, help="a home (MODELYARD_HOME) to copy, so that what stands in it is not made again")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "tiny", help="the tiny recipe's data, where it is made already")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        project = Project.copy_to(Path(folder) / "project")
        home = Path(folder) / "home"
        project.environment = {"MODELYARD_HOME": str(home), "OMP_NUM_THREADS": "1"}
        os.environ["MODELYARD_HOME"] = str(home)
        if given.keep:
            shutil.copytree(given.keep, home)
        if given.data.is_dir():
            shutil.copytree(given.data, project.folder / "data" / "tiny", dirs_exist_ok=True)
        found = loop(project, given.prompts, given.people, given.noise)
    print(text := _table(found, given.people, given.noise))
    write_section("The loop, closed", text)
    sys.exit(0 if found["after"]["agrees"] > 0.75 and found["moved"]["wins"] > 0.5 else 1)


if __name__ == "__main__":
    main()
