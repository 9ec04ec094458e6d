"""A person at the page where people rank, in a real browser: what they see, and the keys and the mouse by which they rank.

    with chromium() as browser:
        ada = Person(browser.new_context().new_page(), "http://127.0.0.1:8700")
        ada.come("Ada")
        ada.place([2, 1, 1])         # by the answers as the page shows them: the second and third are the best, and equally good
        ada.next()

Playwright drives Debian's Chromium; both come with the tools for development and are asked for only here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from components.schema.config import BadInput

CHROMIUM = "/usr/bin/chromium"
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
PATIENCE_MS = 60_000
STILL = "() => document.getAnimations().every(one => one.playState !== 'running')"  # cards slide to their places
CHANGED = "before => { const all = document.querySelectorAll('.question .text'); return all.length ? all[all.length - 1].innerText !== before : Boolean(document.querySelector('section.middle button')); }"


def require() -> None:
    """Errors: BadInput where there is no browser to be at the page with."""
    if find_spec("playwright") is None:
        raise BadInput("feedback: playwright is not installed, so nobody can be at the page. Install it: pip install 'modelyard[dev]'")
    if not shutil.which(CHROMIUM):
        raise BadInput(f"feedback: there is no {CHROMIUM}, so nobody can be at the page. Install it: sudo infra/debian.sh browser")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window. Errors: BadInput where it is not here."""
    require()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


class Person:
    """One person at one page of a browser."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        page.set_default_timeout(PATIENCE_MS)

    def come(self, name: str) -> None:
        """Open the page and sign in; done when there is a question, or the page says that there is none."""
        self.page.goto(self.address)
        self.page.get_by_label("Name").fill(name)
        self.page.keyboard.press("Enter")
        self.page.locator("#list li, section.middle button").first.wait_for()

    @property
    def has_question(self) -> bool:
        return self.page.locator("#list li").count() > 0

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

    @property
    def at(self) -> int:
        """The place of the answer that keys are about."""
        return self.page.evaluate("[...document.querySelectorAll('#list li')].findIndex(one => one.classList.contains('at'))")

    def walk(self, steps: int) -> None:
        """With the arrow keys, down the list or up."""
        for _ in range(abs(steps)):
            self.page.keyboard.press("ArrowDown" if steps > 0 else "ArrowUp")

    def place(self, ranks: Sequence[int], dragging: bool = False) -> None:
        """Put the answers into an order, with keys alone or with the mouse. `ranks` go by the answers as they stand now, none of them tied yet."""
        wanted = sorted(range(len(ranks)), key=lambda answer: ranks[answer])
        tied = [place for place in range(1, len(wanted)) if ranks[wanted[place]] == ranks[wanted[place - 1]]]
        (self._drag if dragging else self._press)(wanted, tied)

    def next(self) -> None:
        """Keep it and go on; done when the question has changed, or none is left."""
        before = self.question
        self.page.keyboard.press("Enter")
        self.page.wait_for_function(CHANGED, arg=before)

    def close(self) -> None:
        """When the server has everything."""
        self.page.get_by_text("all kept").wait_for()
        self.page.context.close()

    def _press(self, wanted: Sequence[int], tied: Sequence[int]) -> None:
        """Arrow keys walk to an answer, a digit puts it in its place, = ties it with the one above."""
        order, at = list(range(len(wanted))), self.at
        for place, answer in enumerate(wanted):
            self.walk(order.index(answer) - at)
            self.page.keyboard.press(str(place + 1))
            order.insert(place, order.pop(order.index(answer)))
            at = place
        for place in tied:
            self.walk(place - at)
            self.page.keyboard.press("=")
            at = place

    def _drag(self, wanted: Sequence[int], tied: Sequence[int]) -> None:
        """Each answer is dragged up to its place by its handle; then the chip between two that are as good is clicked."""
        order = list(range(len(wanted)))
        for place, answer in enumerate(wanted):
            there = order.index(answer)
            if there != place:
                self._drag_up(there, place)
            order.insert(place, order.pop(there))
        if order == sorted(order):
            self.page.keyboard.press("1")  # nothing had to be moved: so it is said that this order is meant
        for place in tied:
            self.page.locator("#list .tie").nth(place).click()
        self.page.locator("#list li").first.focus()  # Enter on a button would press the button

    def _drag_up(self, there: int, place: int) -> None:
        mouse, cards = self.page.mouse, self.page.locator("#list li")
        self.page.wait_for_function(STILL)
        handle = cards.nth(there).locator(".handle").bounding_box()
        top = cards.nth(place).bounding_box()["y"]
        x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
        mouse.move(x, y)
        mouse.down()
        mouse.move(x, top + 4, steps=4)
        self.page.wait_for_function("() => document.querySelectorAll('#list .target').length === 1")
        mouse.up()
