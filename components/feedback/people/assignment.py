"""Who gets which question: each by as many people as it wants, none twice to the same person, known ones in between.

    store.write(lambda session: claims(session, annotator, dataset, ahead=3, now=time.time()))

A claim holds one of the item's slots while its lease runs, and for good once the item is ranked; a unique constraint on (item, slot) keeps
more people from an item than it wants, however many ask at the same moment. What ran out loses its slot to the next who asks. A ranking
that comes after that is kept all the same: it is one more than was wanted, and nothing that a person did is lost.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from components.feedback.people.store import DONE, OPEN, SKIPPED, Annotator, Claim, Dataset, Item
from components.schema.config import BadInput
from components.schema.people import AskConfig


class Progress(NamedTuple):
    """How far one person is in a dataset."""

    done: int
    skipped: int
    left: int
    """Questions that this person may still get, those on the screen included."""


def dataset_called(session: Session, name: str) -> AskConfig:
    """How a dataset is asked. Errors: BadInput where there is none of that name."""
    found = session.get(Dataset, name)
    if found is None:
        there = session.scalars(select(Dataset.name).order_by(Dataset.name)).all()
        raise BadInput(f"feedback: there is no dataset {name!r}, so there is nothing to rank. There are: {', '.join(there) or 'none'}; make one with `modelyard feedback ask`")
    return found.asked


def claims(session: Session, annotator: Annotator, dataset: str, ahead: int, now: float) -> list[Claim]:
    """Up to `ahead` open claims of a person, those they had already first; each is theirs for the lease from now on. Errors: BadInput."""
    config = dataset_called(session, dataset)
    until = now + 60 * config.lease_minutes
    _let_go(session, dataset, annotator, now)
    of_mine = select(Claim).join(Item).where(Item.dataset == dataset, Claim.annotator_id == annotator.id, Claim.state == OPEN).order_by(Claim.id)
    held = [claim for claim in session.scalars(of_mine) if _holds(session, claim)][:ahead]
    while len(held) < ahead and (claim := _claimed(session, annotator, config)) is not None:
        held.append(claim)
    for claim in held:
        claim.until = until
    session.flush()
    return held


def progress(session: Session, annotator: Annotator, dataset: str, now: float) -> Progress:
    """How far a person is. The known questions that are still to come are counted as they will come: nobody sees by a sum which ones they are."""
    share = dataset_called(session, dataset).gold_share
    mine = select(Claim.state, Item.is_gold, func.count()).join(Item).where(Item.dataset == dataset, Claim.annotator_id == annotator.id)
    counts = {(state, gold): count for state, gold, count in session.execute(mine.group_by(Claim.state, Item.is_gold)).tuples()}
    done, skipped = (sum(counts.get((state, gold), 0) for gold in (False, True)) for state in (DONE, SKIPPED))
    left = counts.get((OPEN, False), 0) + (session.scalar(select(func.count()).select_from(Item).where(*_free_for(annotator, dataset, now))) or 0)
    known = session.scalar(select(func.count()).select_from(Item).where(Item.dataset == dataset, Item.is_gold)) or 0
    to_come = min(known, int(share / (1 - share) * (left + counts.get((DONE, False), 0)))) if share < 1 else known
    return Progress(done, skipped, left + max(counts.get((OPEN, True), 0), to_come - counts.get((DONE, True), 0)))


def take_slot(session: Session, claim: Claim) -> None:
    """A slot of the item for this claim, where one is free; gold needs none."""
    if claim.slot is None and not claim.item.is_gold:
        taken = set(session.scalars(select(Claim.slot).where(Claim.item_id == claim.item_id, Claim.slot.is_not(None))))
        claim.slot = next((slot for slot in range(claim.item.overlap) if slot not in taken), None)


def _let_go(session: Session, dataset: str, annotator: Annotator, now: float) -> None:
    """Other people's claims of which the lease has ended lose their slots."""
    here = select(Item.id).where(Item.dataset == dataset)
    over = (Claim.state == OPEN, Claim.slot.is_not(None), Claim.until < now, Claim.annotator_id != annotator.id, Claim.item_id.in_(here))
    session.execute(update(Claim).where(*over).values(slot=None))


def _holds(session: Session, claim: Claim) -> bool:
    """Whether an open claim counts: it has its slot, or finds one."""
    take_slot(session, claim)
    return claim.slot is not None or claim.item.is_gold


def _claimed(session: Session, annotator: Annotator, config: AskConfig) -> Claim | None:
    """A new claim on the next item of this person; None where there is none.

    PostgreSQL finds an item by the counts of the moment before it locks it. One that others filled in between has no slot left, and the next look knows.
    """
    while (item := _next(session, annotator, config)) is not None:
        places = list(range(len(item.answers)))
        Random(f"{config.seed}/{item.digest}/{annotator.name}").shuffle(places)
        claim = Claim(item=item, item_id=item.id, annotator_id=annotator.id, slot=None, state=OPEN, until=0.0, shown=places)
        if _holds(session, claim):
            session.add(claim)
            session.flush()
            return claim
    return None


def _next(session: Session, annotator: Annotator, config: AskConfig) -> Item | None:
    """A known item where one is due, else the first that wants people; when nothing wants people any more, no known one is asked either."""
    first = select(Item).where(*_free_for(annotator, config.name, None)).order_by(Item.priority, Item.id).limit(1)
    item = session.scalars(first.with_for_update(skip_locked=True)).first()
    if item is None or not _gold_is_due(session, annotator, config):
        return item
    known = select(Item).where(Item.dataset == config.name, Item.is_gold, ~_claims_of(annotator)).order_by(Item.id).limit(1)
    return session.scalars(known).first() or item


def _gold_is_due(session: Session, annotator: Annotator, config: AskConfig) -> bool:
    """By share, the first at a place that nobody can guess."""
    counted = select(func.count(), func.count().filter(Item.is_gold)).select_from(Claim).join(Item).where(Item.dataset == config.name, Claim.annotator_id == annotator.id)
    shown, known = session.execute(counted).one()
    return known + Random(f"{config.seed}/{annotator.name}").random() < config.gold_share * (shown + 1)


def _claims_of(annotator: Annotator) -> ColumnElement[bool]:
    """Whether this person ever had the item."""
    return select(Claim.id).where(Claim.item_id == Item.id, Claim.annotator_id == annotator.id).correlate(Item).exists()


def _free_for(annotator: Annotator, dataset: str, now: float | None) -> tuple[ColumnElement[bool], ...]:
    """Clauses: items of a dataset that want one more person, which this one never had. `now`: leases that have ended by then count as free."""
    other = aliased(Claim)
    running = other.slot.is_not(None) if now is None else (other.slot.is_not(None)) & or_(other.state == DONE, other.until >= now)
    taken = select(func.count()).select_from(other).where(other.item_id == Item.id, running).correlate(Item).scalar_subquery()
    return Item.dataset == dataset, ~Item.is_gold, taken < Item.overlap, ~_claims_of(annotator)
