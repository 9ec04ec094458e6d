"""The page where people rank, served by the real server, and a person who uses it as people do: with keys, a mouse or a finger.

    with Ranked(folder) as ranked:                       # the server on a port of its own; ranked.store is its database
        somebody = ranked.person(browser, "Ada")         # signed in, a question on the screen
        somebody.rank(["best", "middle", "worst"], tied={"middle"})      # by the texts of the answers; tied: as good as the one before
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from benchmarks.ranking import Server
from components.feedback.people.in_browser import Person
from components.feedback.people.opinions import Said, said
from components.feedback.people.store import Store


class Ranked:
    """A server and its database in a folder; ends with the block."""

    def __init__(self, folder: Path) -> None:
        (folder / "feedback").mkdir(parents=True, exist_ok=True)
        self.store = Store.open(f"sqlite:///{folder}/feedback/people.db")
        self.server = Server(folder)

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.end()

    @property
    def said(self) -> list[Said]:
        return self.said_in("people")

    def said_in(self, dataset: str) -> list[Said]:
        return self.store.read(lambda session: said(session, dataset))

    def wait_for(self, rankings: int, within_s: float = 60.0) -> list[Said]:
        """What was said, once it is so much. Errors: AssertionError."""
        deadline = time.monotonic() + within_s
        while len(found := self.said) != rankings:
            assert time.monotonic() < deadline, f"{len(found)} rankings instead of {rankings}"
            time.sleep(0.1)
        return found

    def person(self, browser: Any, name: str, dataset: str = "people", **options: Any) -> Somebody:
        """A person in a browser of their own, with a question of a dataset before them."""
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        found = Somebody(context.new_page(), f"{self.server.address}/?dataset={dataset}")
        found.come(name)
        return found


class Somebody(Person):
    """One person and what their browser said."""

    def __init__(self, page: Any, address: str) -> None:
        super().__init__(page, address)
        self.asked: list[str] = []
        """Addresses that the browser asked."""
        self.complaints: list[str] = []
        """Errors of scripts, and what the page's policy forbade."""
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" and "Failed to load resource" not in message.text and "ERR_CONNECTION" not in message.text else None)

    def go_to(self, text: str) -> None:
        """Walk to an answer with the arrow keys."""
        self.walk(self.texts.index(text) - self.at)

    def order(self, wanted: Sequence[str], tied: Collection[str] = ()) -> None:
        """Put the answers into an order, with keys alone."""
        ranks = dict(zip(wanted, accumulate(text not in tied for text in wanted), strict=True))
        self.place([ranks[text] for text in self.texts])

    def rank(self, wanted: Sequence[str], tied: Collection[str] = ()) -> None:
        self.order(wanted, tied)
        self.next()
