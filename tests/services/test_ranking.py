"""People rank at once over HTTP while the server is killed, on SQLite and on PostgreSQL: nothing lost, nothing twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.ranking import stress
from components.feedback.people.store import Store
from components.schema.config import Unavailable
from tests.feedback.people import claims, person, question, said, say
from tests.services.stack import Postgres, free_port

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_two_kills_of_the_server_lose_no_ranking_and_double_none(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("postgres").url("rankings", "postgresql") if database == "postgres" else None
    found = stress(tmp_path, rankings=120, people=8, kills=2, url=url)
    assert (found["kept"], found["lost"], found["doubled"], found["odd"]) == (120, 0, 0, 0)
    assert len(found["killed_at"]) == 2 and found["again"] > 0


def test_a_database_server_that_dies_and_comes_back_keeps_what_was_confirmed(postgres: Postgres) -> None:
    from components.feedback.people.asking import ask
    from components.schema.people import AskConfig

    store = Store.open(postgres.url("comes_back", "postgresql"))
    ask(store, AskConfig(gold_share=0.0), [question(i) for i in range(3)])
    who = person(store, "Ada")
    first, second = claims(store, who, ahead=2)
    say(store, who, first, [1, 2, 3], "before-0001")
    postgres.kill()
    postgres.start()
    say(store, who, second, [3, 2, 1], "after-00001", now=time.time())
    assert [one.opinion.ranks for one in sorted(said(store), key=lambda one: one.at)] == [(1, 2, 3), (3, 2, 1)]


def test_a_database_that_is_not_there_is_told_with_its_address_and_without_its_password() -> None:
    with pytest.raises(Unavailable, match=r"feedback: the database postgresql://ada:\*\*\*@127.0.0.1.* does not answer") as error:
        Store.open(f"postgresql://ada:hidden@127.0.0.1:{free_port()}/none")
    assert "hidden" not in str(error.value)
