"""Who gets which question: overlap, leases, known questions, several people at once."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from components.feedback.people import assignment, opinions
from components.feedback.people.asking import ask
from components.feedback.people.store import DONE, OPEN, SKIPPED, Claim, Item
from components.schema.config import BadInput
from components.schema.people import AskConfig
from tests.feedback.people import all_claims, claims, filled, made, person, question, said, say


def test_each_question_goes_to_as_many_people_as_it_wants_and_to_nobody_twice(tmp_path: Path) -> None:
    store = filled(tmp_path, questions=3, overlap=2)
    for name in ("Ada", "Bo", "Cy"):
        who = person(store, name)
        while found := claims(store, who):
            say(store, who, found[0], [1, 2, 3], f"{name}-{found[0].item_id:08}")
    by_item = Counter(claim.item_id for claim in all_claims(store))
    assert set(by_item.values()) == {2} and len(by_item) == 3
    assert len({(one.item.id, one.annotator) for one in said(store)}) == 6
    assert {one.annotator for one in said(store)} == {"Ada", "Bo"}, "Cy came when everything had its people"


def test_eight_people_at_once_never_exceed_the_overlap(tmp_path: Path) -> None:
    store = filled(tmp_path, questions=8, overlap=2)

    def work(name: str) -> int:
        who, done = person(store, name), 0
        while found := claims(store, who, ahead=2):
            for claim in found:
                say(store, who, claim, [1, 2, 3], f"{name}-{claim.item_id:08}")
                done += 1
        return done

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(work, [f"person{i}" for i in range(8)]))
    assert sum(done) == 16 and set(Counter(one.item.id for one in said(store)).values()) == {2}


def test_a_question_that_filled_up_between_the_look_and_the_lock_goes_to_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In PostgreSQL the count by which a question is found may be older than the lock on it."""
    store = filled(tmp_path, questions=2, overlap=1)
    (first,) = claims(store, person(store, "Ada"))
    find, stale = assignment._next, [first.item]
    monkeypatch.setattr(assignment, "_next", lambda session, *asked: session.get(Item, stale.pop().id) if stale else find(session, *asked))
    (second,) = claims(store, person(store, "Bo"))
    assert not stale and second.item_id != first.item_id and (first.slot, second.slot) == (0, 0)


def test_the_database_itself_refuses_what_must_not_be(tmp_path: Path) -> None:
    store = filled(tmp_path)
    who, other = person(store, "Ada"), person(store, "Bo")
    (claim,) = claims(store, who)
    same = {"item_id": claim.item_id, "state": OPEN, "until": 0.0, "shown": [0, 1, 2]}
    for row in ({**same, "annotator_id": who.id, "slot": None}, {**same, "annotator_id": other.id, "slot": claim.slot}):
        with pytest.raises(IntegrityError), store.engine.begin() as connection:
            connection.execute(insert(Claim).values(**row))


def test_a_lease_that_ran_out_frees_the_question_and_what_comes_late_still_counts(tmp_path: Path) -> None:
    store, now = filled(tmp_path, questions=1, lease_minutes=10), time.time()
    slow, quick = person(store, "Slow"), person(store, "Quick")
    (first,) = claims(store, slow, now=now)
    assert claims(store, quick, now=now + 590) == []
    (second,) = claims(store, quick, now=now + 610)
    assert second.item_id == first.item_id
    say(store, quick, second, [1, 2, 3], "quick-0001")
    say(store, slow, first, [3, 2, 1], "slow-00001")
    assert {one.annotator: one.opinion.ranks for one in said(store)} == {"Quick": (1, 2, 3), "Slow": (3, 2, 1)}
    assert claims(store, slow, now=now + 700) == []


def test_asked_again_a_person_has_the_same_open_questions_with_a_new_lease(tmp_path: Path) -> None:
    store, now = filled(tmp_path), time.time()
    who = person(store, "Ada")
    first = claims(store, who, ahead=3, now=now)
    again = claims(store, who, ahead=3, now=now + 60)
    assert [claim.id for claim in again] == [claim.id for claim in first] and again[0].until == first[0].until + 60


def test_known_questions_come_in_by_their_share_and_each_once(tmp_path: Path) -> None:
    store = filled(tmp_path, questions=16, known=5, gold_share=0.2)
    who, places = person(store, "Ada"), []
    for place in range(30):
        if not (found := claims(store, who)):
            break
        if found[0].item.is_gold:
            places.append(place)
        say(store, who, found[0], [1, 2, 3], f"ada-{place:08}")
    assert place == 16 + len(places) and len(places) in (3, 4) and all(4 <= later - sooner <= 6 for sooner, later in pairwise(places))


def test_the_sum_on_the_page_does_not_tell_which_question_is_a_known_one(tmp_path: Path) -> None:
    store = filled(tmp_path, questions=12, known=3, gold_share=0.2)
    who, sums = person(store, "Ada"), []
    for place in range(12):
        (claim,) = claims(store, who)
        done, _, left = store.read(lambda session: assignment.progress(session, who, "people", time.time()))
        sums.append(done + left)
        say(store, who, claim, [1, 2, 3], f"ada-{place:08}")
    assert set(sums) == {15}


def test_the_order_of_the_answers_differs_by_person_and_is_the_same_again(tmp_path: Path) -> None:
    shown = []
    for place in ("one", "two"):
        store = filled(made(tmp_path / place), questions=8, answers=4, overlap=3)
        shown.append({name: [tuple(claim.shown) for claim in claims(store, person(store, name), ahead=5)] for name in ("Ada", "Bo")})
    assert shown[0]["Ada"] != shown[0]["Bo"] and shown[0] == shown[1]


def test_a_skipped_question_is_somebody_elses(tmp_path: Path) -> None:
    store = filled(tmp_path, questions=1)
    who, other = person(store, "Ada"), person(store, "Bo")
    (claim,) = claims(store, who)
    store.write(lambda session: opinions.keep(session, who, opinions.Sent(submission="skip-0001", item=claim.item_id, kind="skip"), 0.0))
    assert claims(store, who) == [] and [one.item_id for one in claims(store, other)] == [claim.item_id]
    assert sorted(one.state for one in all_claims(store)) == [OPEN, SKIPPED]


def test_asked_again_nothing_is_asked_twice_and_a_larger_overlap_opens_what_was_done(tmp_path: Path) -> None:
    store = filled(tmp_path, questions=2)
    who, other = person(store, "Ada"), person(store, "Bo")
    for claim in claims(store, who, ahead=2):
        say(store, who, claim, [1, 2, 3], f"ada-{claim.item_id:08}")
    assert claims(store, other) == []
    assert ask(store, AskConfig(overlap=2), [question(0), question(1), question(2)]) == 1
    assert len(claims(store, other, ahead=5)) == 3
    assert [claim.state for claim in all_claims(store)][:2] == [DONE, DONE]


def test_a_dataset_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(BadInput, match=r"there is no dataset 'nobody'.* There are: people; make one"):
        store.write(lambda session: assignment.claims(session, person(store, "Ada"), "nobody", 1, 0.0))
