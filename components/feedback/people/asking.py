"""Questions for people: prompts with answers of several models, whose answer is whose kept to ourselves.

    ask(store, AskConfig(name="people", overlap=2), rows)      # rows: {"prompt": turns, "answers": [{"text", "model"}], "gold": ranks or None}
    answered(prompts, writers, answers=4, seed=0, counts)      # such rows, by asking models

A question is known by its prompt and its answers: asked again it is not asked twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from components.feedback import prompts
from components.feedback.people.store import Dataset, Item, Store
from components.feedback.wording import Message
from components.schema.config import BadInput
from components.schema.people import LONGEST_TEXT, MOST_ANSWERS, AskConfig, dense
from components.schema.records import digest

Chat = list[Message]
Row = dict[str, Any]
Write = Callable[[Sequence[Chat], int], Sequence[str | None]]  # an answer to each prompt, sampled by a seed; None where the model cannot read it
SEVERAL = ""  # in place of a model, where several gave the same answer, or it is not known who did
SPARE_ROUNDS = 2  # asked once more, as often as this, where a model repeats itself


def ask(store: Store, config: AskConfig, rows: Sequence[Row]) -> int:
    """Add questions to a dataset, made where there is none, and give how many are new. The configuration counts from now on, also for the questions that stand."""
    return store.write(lambda session: _ask(session, config, rows))


def _ask(session: Session, config: AskConfig, rows: Sequence[Row]) -> int:
    session.merge(Dataset(name=config.name, config=config.model_dump(mode="json")))
    session.flush()
    known = set(session.scalars(select(Item.digest).where(Item.dataset == config.name)))
    new = {}
    for row in rows:
        name = digest([row["prompt"], sorted(one["text"] for one in row["answers"])])
        if name not in known:
            gold = row.get("gold")
            new[name] = Item(dataset=config.name, digest=name, prompt=row["prompt"], answers=row["answers"], gold=gold, is_gold=gold is not None, overlap=config.overlap)
    session.add_all(new.values())
    for item in session.scalars(select(Item).where(Item.dataset == config.name, Item.overlap != config.overlap)):
        item.overlap = config.overlap
    return len(new)


def configured(store: Store, name: str, told: Mapping[str, Any]) -> AskConfig:
    """How a dataset is asked: what is told now, else what was told before. Errors: BadInput."""
    found = store.read(lambda session: session.get(Dataset, name))
    try:
        return AskConfig.model_validate({**(found.config if found else {"name": name}), **told})
    except ValidationError as error:
        problems = "; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors())
        raise BadInput(f"feedback: {problems}, so nobody was asked. Correct the command") from None


def writers(folders: Mapping[str, Path | None], max_new_tokens: int, temperature: float) -> dict[str, Callable[[], Write]]:
    """By model, what loads it and gives its answers; without a folder the name is an endpoint's URL with #NAME. Errors: BadInput."""
    from components.feedback import critic
    from components.feedback.local import LocalModel
    from components.schema.feedback import CriticConfig

    def one(name: str, folder: Path | None) -> Callable[[], Write]:
        if folder is not None:
            return lambda: LocalModel(folder, max_new_tokens, temperature).write
        url, _, model = name.partition("#")
        if not model:
            raise BadInput(f"feedback: {name} names an endpoint and no model of it, so nobody would answer. Write {name}#NAME")
        return lambda: critic.made(CriticConfig(model=model, url=url, max_new_tokens=max_new_tokens, temperature=temperature), None).write

    return {name: one(name, folder) for name, folder in folders.items()}


def answered(asked: Sequence[Chat], writers: Mapping[str, Callable[[], Write]], answers: int, seed: int, left_out: Counter[str]) -> Iterator[Row]:
    """Each prompt with `answers` different answers, of all models in turn; one model is held at a time. Prompts that get fewer than two are counted and left out."""
    each = -(-answers // len(writers))
    said = [_sampled(load(), asked, each, seed) for load in writers.values()]
    for number, prompt in enumerate(asked):
        mine = [said_by[number] for said_by in said]
        if any(None in texts for texts in mine):
            left_out["question_longer_than_a_model_can_read"] += 1
            continue
        by_text: dict[str, list[str]] = {}
        for place in zip_longest(*mine):
            for model, text in zip(writers, place, strict=True):
                by_text.setdefault(text, []).append(model) if text is not None else None
        different = [{"text": text, "model": own[0] if len(own) == 1 else SEVERAL} for text, own in by_text.items()][:answers]
        if len(different) < 2:
            left_out["fewer_than_two_different_answers"] += 1
            continue
        yield {"prompt": prompt, "answers": different}


def _sampled(write: Write, asked: Sequence[Chat], each: int, seed: int) -> list[list[str | None]]:
    """For each prompt up to `each` different answers of one model; [None] where it cannot read it. An answer that says nothing is none."""
    found: list[dict[str | None, None]] = [{} for _ in asked]
    for turn in range(each + SPARE_ROUNDS):
        wanting = [i for i, texts in enumerate(found) if len(texts) < each and None not in texts]
        for i, text in zip(wanting, write([asked[i] for i in wanting], seed + turn) if wanting else (), strict=True):
            if text is None or (text.strip() and len(text) <= LONGEST_TEXT):
                found[i][text] = None
    return [list(texts) for texts in found]


def read_rows(path: Path, known: bool) -> list[Row]:
    """Prompts with answers that are there already: `answers` (texts, or {"text", "model"}), and `ranks` where `known`; or chosen and rejected. Errors: BadInput."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise BadInput(f"feedback: {path} cannot be read ({str(error).splitlines()[0]}), so nothing is asked. Name a file of JSON lines") from None
    return [_row(line, known, f"feedback: {path}, row {number}") for number, line in enumerate(lines, start=1)]


def _row(line: Any, known: bool, where: str) -> Row:
    values = dict(line) if isinstance(line, dict) else {}
    if "answers" not in values and {"chosen", "rejected"} <= values.keys():
        values |= {"answers": [values["chosen"], values["rejected"]], "ranks": [1, 2]}
    given = values.get("answers")
    answers = [{"text": one, "model": ""} if isinstance(one, str) else one for one in given] if isinstance(given, list) else []
    texts = [one.get("text") if isinstance(one, dict) else None for one in answers]
    if not 2 <= len(set(map(str, texts))) == len(texts) <= MOST_ANSWERS or not all(isinstance(text, str) and text.strip() and len(text) <= LONGEST_TEXT for text in texts):
        raise BadInput(f"{where}: `answers` must be 2 to {MOST_ANSWERS} different texts of at most {LONGEST_TEXT:,} characters, or `chosen` and `rejected`; so nothing is asked. Correct the row")
    ranks = values.get("ranks")
    if known and (not isinstance(ranks, list) or len(ranks) != len(texts) or not all(type(rank) is int for rank in ranks) or len(set(ranks)) < 2):
        raise BadInput(f"{where}: `ranks` must give each of the {len(texts)} answers its right rank, 1 the best, not all alike; else nobody could be right or wrong. Correct the row")
    return {
        "prompt": prompts.prompt_of(line, where.removeprefix("feedback: ")),
        "answers": [{"text": one["text"], "model": str(one.get("model", ""))} for one in answers],
        "gold": list(dense(tuple(ranks))) if known else None,
    }


def summary(session: Session) -> list[dict[str, Any]]:
    """Every dataset by name, with how it is asked."""
    return [dataset.asked.model_dump() for dataset in session.scalars(select(Dataset).order_by(Dataset.name))]


