"""The loop of human feedback, closed: questions, people at the page, their dataset, a reward model, an aligned policy, and what became of the rule by which they ranked.

    modelyard feedback loop recipes/tiny.yaml --annotators 4 --questions 150 --noise 0.1

The people are simulated (components/feedback/people/simulated.py), everything else is what real ones would use: the questions of `feedback ask`, the
page in a browser, `feedback export`, and the recipe's own line with its preferences replaced by theirs. Begun again in the same folder it goes on.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import fmean
from threading import Thread
from typing import Any, NamedTuple

import uvicorn
import yaml
from rich.console import Console
from sqlalchemy import func, select

from components.evaluation.statistics import paired_difference, wilson
from components.feedback.people import agreement, asking, in_browser, server, simulated
from components.feedback.people.opinions import said
from components.feedback.people.selection import reward_models
from components.feedback.people.store import DONE, Claim, Item, Store
from components.feedback.prompts import read
from components.launch import verdict
from components.schema.config import BadInput
from components.schema.jobs import Job
from components.schema.people import AskConfig
from components.schema.recipe import Recipe, Resources
from components.schema.records import Record
from flows.planning import planned
from flows.terminal import flows_watched

ANSWERS, OVERLAP = 4, 2  # to a question; people for a question
SPARE = 2.0  # prompts for one question: the models answer some of them always alike
UNSEEN = 150  # prompts that nobody ranks, on which is measured
ASIDE = 0.2  # share of questions from the held-out side of the data, which stays held out: the stages measure themselves on it
DRAGGED = 0.2  # share of questions that are ranked with the mouse
PICTURE = "page.png"  # the page as the first annotator had it amid the work

Chat = asking.Chat


class Asked(NamedTuple):
    """What a person asked for on the command line."""

    rule: str
    annotators: int
    questions: int
    noise: float
    seed: int


class Line(NamedTuple):
    """The finished line that is gone on with."""

    recipe: Recipe
    path: Path
    chat: Job
    reward: Job
    policy: Job
    max_new_tokens: int


def run(path: Path, recipe: Recipe, resources: Resources, asked: Asked, out: Path, console: Console) -> dict[str, Any]:
    """All of it; gives the figures of the report. Errors: BadInput where the line is not finished, or there is no browser."""
    in_browser.require()
    rule, line, clock = simulated.rule_called(asked.rule), standing(path, recipe, resources), Clock(console)
    begin(asked, line, out)
    store = Store.open(f"sqlite:///{out.absolute()}/people.db")
    config = AskConfig(name=f"{recipe.name}-loop", overlap=min(OVERLAP, asked.annotators), gold_share=0.0, seed=asked.seed, retrain_after=0, guide=f"Simulated people rank here: {rule.says}.")
    with clock("asked"):
        unseen = ask(line, asked, config, store, console)
    with clock("ranked"):
        rank(asked, rule, store, config, out, console)
    with clock("trained"):
        folder, exported, records = train(recipe, resources, store, config, out, console)
    with clock("measured"):
        measured = measure(rule, line, records, unseen, asked.seed)
    return {
        "recipe": str(path), "models": {job.stage: job.folder.name for job in (line.chat, line.reward, line.policy)},
        "rule": {"name": asked.rule, "says": rule.says, "unit": rule.unit}, **{name: value for name, value in asked._asdict().items() if name != "rule"},
        "rankings": _rankings(store, config), "export": {"folder": str(folder), **exported, "right": _right(rule, folder)},
        "trained": {name: record.folder.name for name, record in records.items()}, "align": _plain(records[line.policy.stage].figures), **measured, "seconds": clock.seconds,
    }  # fmt: skip


class Clock:
    """Says what goes on and keeps how long it took, in seconds."""

    def __init__(self, console: Console) -> None:
        self.console, self.seconds = console, {}

    @contextmanager
    def __call__(self, done: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[done] = round(time.monotonic() - began, 1)
        self.console.print(f"{done} in {self.seconds[done]:.0f} s", style="dim", highlight=False, soft_wrap=True)


# ---------------------------------------------------------------- what stands


def standing(path: Path, recipe: Recipe, resources: Resources) -> Line:
    """The chat, reward and policy models of a recipe's line. Errors: BadInput where it has none, or they are not made yet."""
    if not (recipe.sft and recipe.reward and recipe.align):
        raise BadInput(f"feedback: {path} has no sections sft, reward and align, so there is no loop to close. Name a recipe that has them, such as recipes/tiny.yaml")
    if recipe.cost:
        raise BadInput(f"feedback: {path} has a section cost, which learns from answers that are flagged as unsafe, and simulated people flag none. Name a recipe without it, such as recipes/tiny.yaml")
    _, jobs = planned(recipe, resources)
    found = [jobs["sft"], jobs["reward"], jobs[recipe.align.stage]]
    for job in found:
        if (seen := verdict(job)).action != "reuse":
            raise BadInput(f"feedback: the {job.stage} stage of {path} is not finished here ({seen.reason}), so there are no answers to rank. Run first: modelyard run {path}")
    return Line(recipe, path, *found, getattr(recipe.align, "max_new_tokens", 64))


def begin(asked: Asked, line: Line, out: Path) -> None:
    """The folder of a run, which keeps what was asked for. Errors: BadInput where something else was begun there."""
    told = out / "asked.json"
    now = {**asked._asdict(), "models": [job.folder.name for job in (line.chat, line.reward, line.policy)]}
    if told.exists() and json.loads(told.read_text(encoding="utf-8")) != now:
        raise BadInput(f"feedback: {out} was begun with other options or models ({told}), and people's rankings of both would be mixed. Take another folder: --out")
    out.mkdir(parents=True, exist_ok=True)
    told.write_text(json.dumps(now) + "\n", encoding="utf-8")


def looped(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with people's preferences in place of its own. Everything before the reward model has the same bytes, and is reused."""
    raw = recipe.model_dump(mode="json")
    raw["name"], raw["data"]["name"] = f"{recipe.name}-loop", f"{recipe.data.name}-loop"
    raw["data"]["preferences"] = [{"kind": "files", "path": str(folder / "preferences")}]
    if raw["data"]["curriculum"]:
        raw["data"]["curriculum"]["preferences"] = 0
    return Recipe.model_validate(raw)


# ---------------------------------------------------------------- people


def ask(line: Line, asked: Asked, config: AskConfig, store: Store, console: Console) -> list[Chat]:
    """Make the questions, by the chat model and the policy; gives prompts that are in none of them."""
    data, rng = Path(line.reward.inputs["preferences"].path), Random(asked.seed)
    sides = [rng.sample(side, len(side)) for side in (read(data / "train.jsonl"), read(data / "heldout.jsonl"))]
    cut = [int(SPARE * share * asked.questions) for share in (1 - ASIDE, ASIDE)]
    here, rest = ([prompt for side, at in zip(sides, cut, strict=True) for prompt in (side[:at], side[at:])[which]] for which in (0, 1))
    if len(rest) < UNSEEN or any(at > len(side) for side, at in zip(sides, cut, strict=True)):
        raise BadInput(f"feedback: {data} has {len(sides[0])} prompts and {len(sides[1])} held out, too few for {asked.questions} questions and {UNSEEN} to measure with. Ask fewer: --questions")
    here, unseen = rng.sample(here, len(here)), rng.sample(rest, UNSEEN)
    writers = asking.writers({job.folder.name: job.folder for job in (line.chat, line.policy)}, line.max_new_tokens, 1.0)
    rows = list(asking.answered(here, writers, ANSWERS, asked.seed, Counter()))[: asked.questions]
    asking.ask(store, config, rows)
    console.print(f"{len(rows)} questions with up to {ANSWERS} answers of {' and '.join(writers)}, each for {config.overlap} people", highlight=False, soft_wrap=True)
    return unseen


def rank(asked: Asked, rule: simulated.Rule, store: Store, config: AskConfig, out: Path, console: Console) -> None:
    """Everybody at a page of their own, in turns, until no question is left for anybody."""
    with served(store) as address, in_browser.chromium() as browser:
        console.print(f"{asked.annotators} people in Chromium rank at {address}: {rule.says}; with chance {asked.noise:g} one takes an answer for another", highlight=False, soft_wrap=True)
        there = {name: _come(browser, address, name) for name in names(asked.annotators)}
        wanted, shown, turns = _open(store, config), 0, Random(asked.seed)
        while working := [(name, person) for name, person in there.items() if person.has_question]:
            for name, person in turns.sample(working, len(working)):  # always in the same order, the same two would have each question
                _place(person, name, rule, asked)
                if not shown:
                    person.page.screenshot(path=out / PICTURE)
                person.next()
                shown = _say(wanted - _open(store, config), wanted, shown, console)
        for person in there.values():
            person.close()
    if left := _open(store, config):
        raise BadInput(f"feedback: {left} rankings did not arrive, although no page has a question left. Run the same command again: it goes on")


def _say(done: int, wanted: int, shown: int, console: Console) -> int:
    """How far they are, once for each tenth; gives what was said last."""
    if shown and done < min(wanted, shown + wanted / 10):
        return shown
    console.print(f"  {done} of {wanted} rankings", highlight=False, soft_wrap=True)
    return max(done, 1)


def names(count: int) -> list[str]:
    """So many people, each with a name of their own."""
    return [simulated.NAMES[i % len(simulated.NAMES)] + (f" {1 + i // len(simulated.NAMES)}" if i >= len(simulated.NAMES) else "") for i in range(count)]


@contextmanager
def served(store: Store) -> Iterator[str]:
    """The page on a free port of this machine; gives its address."""
    running = uvicorn.Server(uvicorn.Config(server.app(store), host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=5))
    thread = Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        if not thread.is_alive():
            raise BadInput("feedback: the page could not be served on this machine's loopback address, so nobody can rank. Look at what it says above")
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()


def _come(browser: Any, address: str, name: str) -> in_browser.Person:
    person = in_browser.Person(browser.new_context(viewport={"width": 1400, "height": 900}).new_page(), address)
    person.come(name)
    return person


def _place(person: in_browser.Person, name: str, rule: simulated.Rule, asked: Asked) -> None:
    """The order in which this person puts the answers on the screen, the same whenever they get them."""
    answers = person.texts
    rng = Random(f"{asked.seed}/{name}/{person.question}")
    person.place(simulated.ranks(rule, answers, asked.noise, rng), dragging=rng.random() < DRAGGED)


def _open(store: Store, config: AskConfig) -> int:
    """Rankings that are still wanted."""
    wanted = select(func.count() * config.overlap).select_from(Item).where(Item.dataset == config.name)
    done = select(func.count()).select_from(Claim).join(Item).where(Item.dataset == config.name, Claim.state == DONE)
    return store.read(lambda session: session.scalars(wanted).one() - session.scalars(done).one())


# ---------------------------------------------------------------- training


def train(recipe: Recipe, resources: Resources, store: Store, config: AskConfig, out: Path, console: Console) -> tuple[Path, dict[str, Any], dict[str, Record]]:
    """Export what people said, and run the line on it up to the policy; gives the export's folder and figures, and the stages' records.

    OUT/recipe.yaml is the whole of it, evaluation and gate too.
    """
    with flows_watched(console) as (_, screen):
        from flows import people  # Prefect learns of its server when it is imported
        from flows.pipeline import train_and_release

        folder, figures = people.export(config.name, store=store)
        console.print(f"{figures['pairs']} pairs exported to {folder}, kept by DVC", highlight=False, soft_wrap=True)
        again = looped(recipe, folder)
        (out / "recipe.yaml").write_text(yaml.safe_dump(again.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8")
        train_and_release(again.model_copy(update={"evals": None}), resources)
    return folder, figures, {name: event["record"] for name, event in screen.results.items()}


# ---------------------------------------------------------------- measuring


def measure(rule: simulated.Rule, line: Line, records: dict[str, Record], unseen: Sequence[Chat], seed: int) -> dict[str, Any]:
    """How far reward models agree with the rule on pairs of unseen prompts, and the rule's count of what models answer there; with 95 % intervals over prompts."""
    folders = {"chat": line.chat.folder, "policy": line.policy.folder, "looped": records[line.policy.stage].folder}
    answers = {name: _answers(folder, unseen, line.max_new_tokens, seed) for name, folder in folders.items()}
    read = [i for i in range(len(unseen)) if all(None not in texts[i] for texts in answers.values())]
    counts = {name: [fmean(map(rule.count, texts[i])) for i in read] for name, texts in answers.items()}
    chats = [(unseen[i], list(dict.fromkeys(answers["chat"][i]))) for i in read]
    before, after = (_agreements(rule, folder, chats) for folder in (line.reward.folder, records["reward"].folder))
    return {
        "reward_model": {
            "prompts": len(before), "pairs": sum(_pairs(rule, texts) for _, texts in chats), "before": _share(before), "after": _share(after), "gain": _interval(after, before),
        },
        "answers": {"prompts": len(read), "answers_each": ANSWERS, **{name: _interval(values) for name, values in counts.items()}, "moved": _interval(counts["looped"], counts["chat"])},
        "characters": {name: fmean(len(text) for i in read for text in texts[i]) for name, texts in answers.items()},
        "samples": [{"prompt": unseen[i][-1]["content"], **{name: texts[i][0] for name, texts in answers.items()}} for i in read[:12]],
    }  # fmt: skip


def _answers(folder: Path, asked: Sequence[Chat], max_new_tokens: int, seed: int) -> list[list[str | None]]:
    """A few sampled answers to each prompt."""
    write = asking.writers({"model": folder}, max_new_tokens, 1.0)["model"]()
    rounds = [write(asked, 1_000 * (1 + seed) + number) for number in range(ANSWERS)]
    return [list(texts) for texts in zip(*rounds, strict=True)]


def _agreements(rule: simulated.Rule, folder: Path, chats: Sequence[tuple[Chat, list[str]]]) -> list[float]:
    """By prompt, how far a reward model agrees with the rule; prompts about whose answers the rule says nothing are left out."""
    scores = iter(reward_models([folder])[0]([[*prompt, {"role": "assistant", "content": text}] for prompt, texts in chats for text in texts]))
    found = (simulated.agreement([rule.count(text) for text in texts], [next(scores) for _ in texts]) for _, texts in chats)
    shares = [share for share in found if share is not None]
    if len(shares) < 2:
        raise BadInput(f"feedback: the rule tells answers to {len(shares)} unseen prompts apart, so nothing can be measured. Take another --rule, or another --seed")
    return shares


def _pairs(rule: simulated.Rule, texts: Sequence[str]) -> int:
    counts = [rule.count(text) for text in texts]
    return sum(first != second for i, first in enumerate(counts) for second in counts[:i])


def _interval(values: Sequence[float], less: Sequence[float] | None = None) -> dict[str, float]:
    """The mean over prompts, or the mean paired difference, with its 95 % interval."""
    mean, low, high = paired_difference(values, less or [0.0] * len(values))
    return {"mean": mean, "low": low, "high": high}


def _share(values: Sequence[float]) -> dict[str, float]:
    """The mean of shares, with an interval as if each prompt were one right or wrong: wider than a bootstrap's, and no point where all are right."""
    low, high = wilson(sum(values), len(values))
    return {"mean": fmean(values), "low": low, "high": high}


def _rankings(store: Store, config: AskConfig) -> dict[str, Any]:
    found = store.read(lambda session: said(session, config.name))
    figures = agreement.figures(found)
    return {"kept": len(found), "questions": figures["items"], "overlap": config.overlap, "alpha": figures["alpha"], "by_annotator": figures["by_annotator"]}


def _right(rule: simulated.Rule, folder: Path) -> float:
    """Of the exported pairs about which the rule says something, or that it calls equal, the share that it has in the same order."""
    rows = [json.loads(line) for line in (folder / "preferences" / "pairs.jsonl").read_text(encoding="utf-8").split("\n") if line]
    return fmean(rule.count(row["chosen"]) < rule.count(row["rejected"]) for row in rows)


def _plain(figures: dict[str, Any]) -> dict[str, float]:
    """The figures of an alignment that are single numbers."""
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}
