"""An answer's text while its tokens come: whole characters only, and no part of a stop string.

    text = Text(tokenizer, stops=("###",))
    text.add(token)        # ("what is certain now", False); True once a stop string has ended the answer
    text.rest()            # at the end: what was held back
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

MOST_PENDING = 8
"""Tokens that may wait for the rest of a character; a model that writes broken UTF-8 gets its replacement characters then."""


class Text:
    """Special tokens are left out, as in any answer that is shown, unless `keeps_special`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = (), keeps_special: bool = False) -> None:
        self.tokenizer, self.stops, self.keeps_special = tokenizer, tuple(stops), keeps_special
        self.ids: list[int] = []
        self._from = self._known = 0  # text of ids[_from:_known] is out; decoding begins before what is new, since tokens are joined by what stands before them
        self._held = ""

    def add(self, token: int) -> tuple[str, bool]:
        """Text that is certain now, and whether a stop string ended the answer; neither it nor what follows is given."""
        self.ids.append(token)
        before, now = self._decoded(self._known), self._decoded(len(self.ids))
        if now.endswith("\ufffd") and len(self.ids) - self._known < MOST_PENDING:
            return "", False
        self._from, self._known = self._known, len(self.ids)
        return self._past_stops(now[len(before) :])

    def rest(self) -> str:
        """What was held back, where the answer ended without a stop string."""
        pending = self._decoded(len(self.ids))[len(self._decoded(self._known)) :]
        self._known = len(self.ids)
        text, ended = self._past_stops(pending)
        out, self._held = text if ended else text + self._held, ""
        return out

    def _decoded(self, end: int) -> str:
        return self.tokenizer.decode(self.ids[self._from : end], skip_special_tokens=not self.keeps_special) if end > self._from else ""

    def _past_stops(self, new: str) -> tuple[str, bool]:
        whole = self._held + new
        found = min((at for stop in self.stops if (at := whole.find(stop)) >= 0), default=None)
        if found is not None:
            self._held = ""
            return whole[:found], True
        keep = max((_overlap(whole, stop) for stop in self.stops), default=0)
        self._held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep], False


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
