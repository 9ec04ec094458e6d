"""What a person says, kept once and for good: rankings, changes, skips and undos, each a revision of the claim.

    store.write(lambda session: keep(session, annotator, Sent(...), time.time()))

A submission carries an id that the page made. Sent again, after a lost answer or by a second tab, it changes nothing and is answered as the
first time; the same id with other words is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, StringConstraints, model_validator
from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from components.feedback.people.assignment import take_slot
from components.feedback.people.store import DONE, OPEN, SKIPPED, Annotator, Claim, Item, Revision
from components.schema.config import BadInput, Config
from components.schema.people import Opinion, dense

STATES = {"ranking": DONE, "skip": SKIPPED, "undo": OPEN}


class Refused(BadInput):
    """What was sent can never be kept: sending it again would not help."""


class Sent(Config):
    """What a page sends. Lists of the opinion go by the answers as that person sees them."""

    submission: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
    """An id that the page made, another one for everything that it sends."""
    item: Annotated[NonNegativeInt, Field(lt=2**31)]
    kind: Literal["ranking", "skip", "undo"] = "ranking"
    opinion: Opinion | None = None

    @model_validator(mode="after")
    def _says_what_its_kind_needs(self) -> Sent:
        if (self.opinion is None) == (self.kind == "ranking"):
            raise ValueError(f"a {self.kind} {'needs' if self.kind == 'ranking' else 'has no'} opinion: it is not clear what is meant. Correct kind or opinion")
        return self


@dataclass(frozen=True)
class Said:
    """The last word of one person on one item."""

    item: Item
    annotator: str
    opinion: Opinion
    at: float


def keep(session: Session, annotator: Annotator, sent: Sent, now: float) -> int:
    """Keep a submission, and give the number of its revision. Errors: Refused."""
    claim = session.scalars(select(Claim).where(Claim.item_id == sent.item, Claim.annotator_id == annotator.id)).first()
    if claim is None:
        raise Refused(f"feedback: item {sent.item} was not given to {annotator.name}, so nothing is kept. Ask for the next ones")
    opinion = _by_place(sent, claim)
    if (before := session.scalars(select(Revision).where(Revision.submission == sent.submission)).first()) is not None:
        if (before.claim_id, before.kind, before.opinion) != (claim.id, sent.kind, opinion):
            raise Refused(f"feedback: submission {sent.submission} was kept already with other words, so this is not. Send it with an id of its own")
        return before.number
    number = 1 + (session.scalar(select(func.max(Revision.number)).where(Revision.claim_id == claim.id)) or 0)
    session.add(Revision(claim_id=claim.id, number=number, submission=sent.submission, kind=sent.kind, opinion=opinion, at=now))
    claim.state = STATES[sent.kind]
    if claim.state == SKIPPED:
        claim.slot = None
    else:
        take_slot(session, claim)
    session.flush()
    return number


def as_shown(claim: Claim, opinion: dict[str, Any] | None) -> dict[str, Any] | None:
    """An opinion as it was sent, its lists in the order in which this person sees the answers."""
    return None if opinion is None else Opinion.model_validate(opinion).moved(claim.shown).model_dump(mode="json")


def last_words(session: Session, dataset: str, annotator: Annotator | None = None) -> Sequence[tuple[Claim, Revision, str]]:
    """The last revision of every claim that has one, with the person's name; the newest last."""
    later = aliased(Revision)
    is_last = ~select(later.id).where(later.claim_id == Revision.claim_id, later.number > Revision.number).exists()
    asked = select(Claim, Revision, Annotator.name).join(Revision, Revision.claim_id == Claim.id).join(Item).join(Annotator, Annotator.id == Claim.annotator_id)
    asked = asked.where(Item.dataset == dataset, is_last, *([Claim.annotator_id == annotator.id] if annotator else []))
    return session.execute(asked.order_by(Revision.id)).tuples().all()


def said(session: Session, dataset: str) -> list[Said]:
    """The rankings that count, by item and name: the same list whatever order they came in."""
    found = [
        Said(claim.item, name, Opinion.model_validate(revision.opinion), revision.at)
        for claim, revision, name in last_words(session, dataset)
        if revision.kind == "ranking"
    ]
    return sorted(found, key=lambda one: (one.item.digest, one.annotator))


def _by_place(sent: Sent, claim: Claim) -> dict[str, Any] | None:
    """The opinion as it is stored: lists by the answers' own places, ranks without gaps. Errors: Refused."""
    if sent.opinion is None:
        return None
    if problem := sent.opinion.of(len(claim.shown)):
        raise Refused(f"feedback: item {sent.item}: {problem}")
    whole = sent.opinion.model_copy(update={"ranks": dense(sent.opinion.ranks)}) if sent.opinion.ranks else sent.opinion
    back = [claim.shown.index(place) for place in range(len(claim.shown))]
    return whole.moved(back).model_dump(mode="json")
