"""The page where people rank, served by the real server, and a person who uses it as people do: with keys, a mouse or a finger.

    with Ranked(folder) as ranked:                       # the server on a port of its own; ranked.store is its database
        somebody = ranked.person(browser, "Ada")         # signed in, a question on the screen
        somebody.rank(["best", "middle", "worst"], tied={"middle"})      # by the texts of the answers; tied: as good as the one before
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.ranking import Server
from components.feedback.people.opinions import Said, said
from components.feedback.people.store import Store

PATIENCE_MS = 60_000


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


@dataclass
class Somebody:
    """One person and what their browser said."""

    page: Any
    address: str
    asked: list[str] = field(default_factory=list)
    """Addresses that the browser asked."""
    complaints: list[str] = field(default_factory=list)
    """Errors of scripts, and what the page's policy forbade."""

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" and "Failed to load resource" not in message.text and "ERR_CONNECTION" not in message.text else None)

    def come(self, name: str) -> None:
        """Open the page and sign in."""
        self.page.goto(self.address)
        self.page.get_by_label("Name").fill(name)
        self.page.keyboard.press("Enter")
        self.page.locator("#list li").first.wait_for()

    @property
    def question(self) -> str:
        """The last turn of what is asked."""
        return self.page.locator(".question .text").last.inner_text()

    @property
    def answers(self) -> list[str]:
        """Texts of the answers, the best first as the page has them now."""
        return self.page.locator("#list .answer").all_inner_texts()

    @property
    def texts(self) -> list[str]:
        """The same, letter for letter: with the spaces that a screen does not show."""
        return self.page.locator("#list .answer").all_text_contents()

    def go_to(self, text: str) -> None:
        """Walk to an answer with the arrow keys."""
        at = [card.get_attribute("class") for card in self.page.locator("#list li").all()]
        step = self.texts.index(text) - next(i for i, names in enumerate(at) if "at" in (names or "").split())
        for _ in range(abs(step)):
            self.page.keyboard.press("ArrowDown" if step > 0 else "ArrowUp")

    def order(self, wanted: Sequence[str], tied: Collection[str] = ()) -> None:
        """Put the answers into an order, with keys alone."""
        for place, text in enumerate(wanted, start=1):
            self.go_to(text)
            self.page.keyboard.press(str(place))
            if text in tied:
                self.page.keyboard.press("=")

    def next(self) -> None:
        """Keep it and go on; done when the question has changed, or none is left."""
        before = self.question
        self.page.keyboard.press("Enter")
        self.page.wait_for_function("before => { const all = document.querySelectorAll('.question .text'); return !all.length || all[all.length - 1].innerText !== before; }", arg=before)

    def rank(self, wanted: Sequence[str], tied: Collection[str] = ()) -> None:
        self.order(wanted, tied)
        self.next()
