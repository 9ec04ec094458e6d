"""A small dataset of questions, and people who answer by a rule: what the tests of people's feedback share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select

from components.feedback.people import assignment, opinions, signing
from components.feedback.people.asking import ask
from components.feedback.people.store import Annotator, Claim, Store
from components.schema.people import AskConfig, Opinion

MODELS = ("secret-model-one", "secret-model-two")


def question(number: int, answers: int = 3, gold: bool = False) -> dict[str, Any]:
    """Answer k says k, by two models in turn; where `gold`, the last one is the best."""
    return {
        "prompt": [{"role": "user", "content": f"{'Known' if gold else 'Question'} {number}?"}],
        "answers": [{"text": f"answer {k} to {number}", "model": MODELS[k % 2]} for k in range(answers)],
        **({"gold": [answers - k for k in range(answers)]} if gold else {}),
    }


def made(folder: Path) -> Path:
    """A folder that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def filled(folder: Path, questions: int = 6, known: int = 0, answers: int = 3, **config: Any) -> Store:
    """A store with a dataset `people`."""
    store = Store.open(f"sqlite:///{folder}/people.db")
    rows = [*(question(i, answers) for i in range(questions)), *(question(i, answers, gold=True) for i in range(known))]
    ask(store, AskConfig.model_validate({"gold_share": 0.0, **config}), rows)
    return store


def person(store: Store, name: str) -> Annotator:
    return store.write(lambda session: signing.sign_in(session, name, "", codes=False))


def claims(store: Store, who: Annotator, ahead: int = 1, now: float | None = None) -> list[Claim]:
    return store.write(lambda session: assignment.claims(session, who, "people", ahead, time.time() if now is None else now))


def by_place(claim: Claim, values: Sequence[Any]) -> tuple[Any, ...]:
    """What belongs to the answers by their places, in the order in which this person sees them: as the page sends it."""
    return tuple(values[place] for place in claim.shown)


def say(store: Store, who: Annotator, claim: Claim, ranks: Sequence[int] | None, submission: str, now: float = 0.0, **more: Any) -> int:
    """A ranking by the answers' places, sent as the page would."""
    lists = {name: by_place(claim, more.pop(name)) for name in ("flags", "ratings") if name in more}
    opinion = Opinion(ranks=None if ranks is None else by_place(claim, ranks), all_bad=ranks is None, **lists, **more)
    sent = opinions.Sent(submission=submission, item=claim.item_id, opinion=opinion)
    return store.write(lambda session: opinions.keep(session, who, sent, now))


def said(store: Store) -> list[opinions.Said]:
    return store.read(lambda session: opinions.said(session, "people"))


def all_claims(store: Store) -> Sequence[Claim]:
    return store.read(lambda session: session.scalars(select(Claim)).all())
