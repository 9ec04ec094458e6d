"""Which questions to ask first: those about whose answers reward models are least sure.

    select(store, "people", reward_models([folder]))      # several: also where they differ

A question's priority is the mean, over its pairs of answers, of how sure the models are of the better side: the probability 1 / (1 + exp(-|margin|)) that a
model gives to it (Bradley and Terry 1952), averaged over models that may contradict each other. 0.5 = they know nothing, 1 = there is nothing to ask.
With several models that is query by committee (Seung et al. 1992); with one it is asking at the smallest margin.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from sqlalchemy import select as rows_of
from sqlalchemy.orm import Session

from components.feedback.people.assignment import dataset_called
from components.feedback.people.store import Item, Store
from components.models.scoring import Score, reward_model
from components.schema.config import BadInput


def select(store: Store, dataset: str, models: Sequence[Score]) -> list[tuple[float, str]]:
    """Order a dataset's questions by what the models know; gives (how sure, the question), the least sure first. Gold keeps its place."""
    items = store.read(lambda session: _items(session, dataset))
    chats = [[*item.prompt, {"role": "assistant", "content": answer["text"]}] for item in items for answer in item.answers]
    scores = [list(model(chats)) for model in models] if chats else []
    found, start = {}, 0
    for item in items:
        own = slice(start, start := start + len(item.answers))
        found[item.id] = certainty([one[own] for one in scores])
    store.write(lambda session: _keep(session, dataset, found))
    return sorted((found[item.id], item.prompt[-1]["content"]) for item in items)


def reward_models(folders: Iterable[Path | None]) -> list[Score]:
    """The reward models in folders. Errors: BadInput."""
    given = list(folders)
    if not given or None in given:
        raise BadInput("feedback: select needs folders of reward models or models:/NAME@ALIAS, and no endpoint, so nothing was ordered. Name a finished reward stage")
    return [reward_model(folder) for folder in given if folder]


def certainty(scores: Sequence[Sequence[float]]) -> float:
    """How sure models are about the order of some answers, 0.5 to 1; scores: (models, answers)."""
    pairs = combinations(range(len(scores[0])), 2)
    chances = [fmean(_chance(one[first] - one[second]) for one in scores) for first, second in pairs]
    return fmean(max(chance, 1 - chance) for chance in chances)


def _chance(margin: float) -> float:
    """That the first of two answers is the better one."""
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, margin))))


def _items(session: Session, dataset: str) -> list[Item]:
    dataset_called(session, dataset)
    return list(session.scalars(rows_of(Item).where(Item.dataset == dataset, ~Item.is_gold).order_by(Item.id)))


def _keep(session: Session, dataset: str, found: dict[int, float]) -> Any:
    for item in _items(session, dataset):
        item.priority = found.get(item.id, item.priority)
