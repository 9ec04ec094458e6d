"""What people say: kept once, never changed, told back as it was said."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select

from components.feedback.people import opinions
from components.feedback.people.opinions import Refused, Sent
from components.feedback.people.store import OPEN, Revision, Store
from components.schema.people import Edit, Opinion
from tests.feedback.people import all_claims, by_place, claims, filled, person, said, say


def revisions(store: Store) -> int:
    return store.read(lambda session: session.scalar(select(func.count()).select_from(Revision)))


def test_the_same_submission_sent_by_eight_at_once_is_kept_once(tmp_path: Path) -> None:
    store = filled(tmp_path)
    who = person(store, "Ada")
    (claim,) = claims(store, who)
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: say(store, who, claim, [1, 2, 3], "the-same-one"), range(8)))
    assert set(numbers) == {1} and revisions(store) == 1


def test_one_id_with_other_words_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path)
    who = person(store, "Ada")
    (claim,) = claims(store, who)
    say(store, who, claim, [1, 2, 3], "the-same-one")
    with pytest.raises(Refused, match="kept already with other words"):
        say(store, who, claim, [3, 2, 1], "the-same-one")
    assert said(store)[0].opinion.ranks == (1, 2, 3)


def test_a_change_and_an_undo_are_revisions_and_the_last_one_counts(tmp_path: Path) -> None:
    store = filled(tmp_path)
    who = person(store, "Ada")
    (claim,) = claims(store, who)
    assert [say(store, who, claim, ranks, f"change-{i:05}") for i, ranks in enumerate([[1, 2, 3], [2, 2, 1]])] == [1, 2]
    assert [one.opinion.ranks for one in said(store)] == [(2, 2, 1)]
    store.write(lambda session: opinions.keep(session, who, Sent(submission="undo-0001", item=claim.item_id, kind="undo"), 0.0))
    assert said(store) == [] and revisions(store) == 3 and all_claims(store)[0].state == OPEN
    assert [one.item_id for one in claims(store, who)] == [claim.item_id], "what was taken back is asked again"
    say(store, who, claim, [3, 1, 1], "again-00001")
    assert [one.opinion.ranks for one in said(store)] == [(2, 1, 1)], "ranks without gaps"


def test_what_is_told_back_stands_in_the_order_in_which_the_person_saw_it(tmp_path: Path) -> None:
    store = filled(tmp_path, questions=20)
    who = person(store, "Ada")
    claim = next(claim for claim in claims(store, who, ahead=20) if claim.shown == [2, 0, 1])  # not its own inverse
    opinion = Opinion(ranks=(1, 2, 3), flags=(("other",), (), ()), ratings=({"helpful": 5}, {}, {"honest": 1}), edit=Edit(answer=0, text="better"), note="n", seconds=2.5)
    store.write(lambda session: opinions.keep(session, who, Sent(submission="shown-0001", item=claim.item_id, opinion=opinion), 0.0))
    kept = said(store)[0].opinion
    assert kept.ranks == (2, 3, 1) and kept.flags == ((), (), ("other",)) and kept.edit == Edit(answer=2, text="better")
    ((again, revision, _),) = store.read(lambda session: opinions.last_words(session, "people", who))
    assert opinions.as_shown(again, revision.opinion) == opinion.model_dump(mode="json")
    assert by_place(claim, kept.ranks) == opinion.ranks


def test_what_was_not_given_to_a_person_is_not_theirs_to_rank(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (claim,) = claims(store, person(store, "Ada"))
    with pytest.raises(Refused, match="was not given to Bo"):
        say(store, person(store, "Bo"), claim, [1, 2, 3], "not-mine-1")


@pytest.mark.parametrize(
    ("opinion", "reason"),
    [
        (lambda: Opinion(ranks=(1, 2)), "ranks has 2 entries for 3 answers"),
        (lambda: Opinion(ranks=(1, 2, 3), flags=(("other",),)), "flags has 1 entries"),
        (lambda: Opinion(ranks=(1, 2, 3), edit=Edit(answer=3, text="x")), "edit.answer is 3 and there are 3 answers"),
    ],
)
def test_an_opinion_about_other_answers_is_refused_with_the_reason(tmp_path: Path, opinion: Callable[[], Opinion], reason: str) -> None:
    store = filled(tmp_path)
    who = person(store, "Ada")
    (claim,) = claims(store, who)
    with pytest.raises(Refused, match=reason):
        store.write(lambda session: opinions.keep(session, who, Sent(submission="unfit-0001", item=claim.item_id, opinion=opinion()), 0.0))
    assert revisions(store) == 0


@pytest.mark.parametrize(
    "raw",
    [{}, {"ranks": [0, 1, 2]}, {"ranks": [1, 2, 3], "flags": [["rude"], [], []]}, {"ranks": [1, 2, 3], "ratings": [{"helpful": 6}, {}, {}]},
     {"ranks": [1, 2, 3], "edit": {"text": "  "}}, {"ranks": [1, 2, 3], "note": "\0"}, {"ranks": [1, 2, 3], "note": "\ud800"}, {"ranks": [1, 2, 3], "model": "x"}],
)  # fmt: skip
def test_what_makes_no_sense_is_no_opinion(raw: dict) -> None:
    with pytest.raises(ValidationError):
        Opinion.model_validate(raw)
