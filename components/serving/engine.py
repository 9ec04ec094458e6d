"""Continuous batching: a thread that writes all answers at once, one token a step; requests join at any step and leave when they end (Yu et al. 2022, Orca).

    engine = Engine(model, tokenizer, Sizes(rows=64, waiting=256, context=1024), deliver)
    engine.submit([Answer(prompt, max_tokens=32, how=Sampling(), seed=1, take=...)])      # from any thread; raises Full, Closed
    engine.cancel(answers); engine.close()                                                # close: what is under way ends first

`deliver(list of (answer, piece))` is called from the thread, once a step. The rows are components/models/slots.py's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.models.build import stop_ids
from components.models.slots import slots_for
from components.serving.sampling import Odds, Sampling, chances, odds, pick
from components.serving.text import Text

log = logging.getLogger("modelyard.serving")

PROMPT_TOKENS = 2048
"""Tokens of prompts that are read before the rows that run get their next token; one prompt at least."""
IDLE_LOOK_S = 0.002
"""Seconds between two looks of an engine that works only while others are idle."""

Finish = Literal["stop", "length", "error"]


class Full(Exception):
    """Too many answers wait already."""


class Closed(Exception):
    """The engine takes nothing more: another version is in service by now."""


@dataclass(frozen=True)
class Piece:
    """What a step added to an answer."""

    text: str
    tokens: tuple[int, ...]
    odds: tuple[Odds, ...] = ()
    finish: Finish | None = None


@dataclass(eq=False)
class Answer:
    """One choice of a request."""

    prompt: Sequence[int]
    max_tokens: int
    how: Sampling
    seed: int
    index: int = 0
    stops: tuple[str, ...] = ()
    ignores_end: bool = False
    """Whether it goes on behind the model's own end, up to max_tokens."""
    scores_prompt: bool = False
    """Whether the prompt's tokens are told as well, in `prompt_odds`; and the model's own end, where it is what comes next."""
    take: Callable[[Piece], None] = lambda piece: None
    """Called by whoever delivers."""
    cancelled: bool = False
    last: int = 0
    text: Text = field(init=False)
    count: int = 0
    prompt_odds: list[Odds] = field(default_factory=list)
    """Of the prompt's tokens from the second on, whole before the first piece is delivered."""

    def begin(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.text, self._chances = Text(tokenizer, self.stops), chances(self.seed, self.index)

    def score(self, logits: Tensor) -> None:
        """The next of the prompt's tokens, (t, V) before each."""
        first = 1 + len(self.prompt_odds)
        tokens = self.prompt[first : first + len(logits)]
        self.prompt_odds += [one for one in odds(logits, tokens, [self.how] * len(tokens)) if one]

    def chance(self) -> float:
        """The number that decides its next token."""
        return float(self._chances.random()) if self.how.temperature > 0 else 0.0


@dataclass(frozen=True)
class Sizes:
    """How much an engine takes on: rows at once, answers that may wait, tokens of a text."""

    rows: int
    waiting: int
    context: int
    threads: int = 0


Deliver = Callable[[list[tuple[Answer, Piece]]], None]


class Engine:
    """One model and the thread that steps it."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sizes: Sizes, deliver: Deliver, others_busy: Callable[[], bool] | None = None
    ) -> None:
        self.tokenizer, self.sizes, self.deliver, self.others_busy = tokenizer, sizes, deliver, others_busy
        self.ends = frozenset(stop_ids(tokenizer))
        with torch.inference_mode():
            self.live = slots_for(model.eval(), sizes.rows, sizes.context, tokenizer.pad_token_id)
        self.rows: list[Answer] = []
        self.waiting: deque[Answer] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return bool(self.rows or self.waiting)

    def submit(self, answers: Sequence[Answer]) -> None:
        """Have these written. Raises Full (then none of them is), Closed."""
        for answer in answers:
            answer.begin(self.tokenizer)
        with self._changed:
            if self._closing:
                raise Closed
            if len(self.rows) + len(self.waiting) + len(answers) > self.sizes.rows + self.sizes.waiting:
                raise Full
            self.waiting.extend(answers)
            self._changed.notify()

    def cancel(self, answers: Sequence[Answer]) -> None:
        """Nobody waits for these any more: they leave at the next step."""
        for answer in answers:
            answer.cancelled = True

    def close(self, cancel: bool = False) -> None:
        """Take nothing more; the thread ends when what is under way has ended, or is cancelled. Does not wait."""
        with self._changed:
            self._closing = True
            if cancel:
                self.cancel([*self.rows, *self.waiting])
            self._changed.notify()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until the thread has ended; whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # ------------------------------------------------------------ the thread

    @torch.inference_mode()
    def _run(self) -> None:
        if self.sizes.threads:
            torch.set_num_threads(self.sizes.threads)
        while (new := self._next()) is not None:
            try:
                self._drop_cancelled()
                if new:
                    self._join(new)
                if self.rows:
                    self._accept(self.rows, self.live.step(torch.tensor([answer.last for answer in self.rows])))
            except Exception:
                log.exception("a step failed; %d answers are given up", len(self.rows))
                self._give_up({*self.rows, *new})

    def _next(self) -> list[Answer] | None:
        """Answers to begin; waits while there is nothing to do. None: the end."""
        with self._changed:
            while not self.busy and not self._closing:
                self._changed.wait()
            if not self.busy:
                return None
        while self.others_busy and self.others_busy():
            time.sleep(IDLE_LOOK_S)
        new: list[Answer] = []
        with self._changed:
            room, budget = self.live.room(), PROMPT_TOKENS
            while self.waiting and room > len(new) and (not new or len(self.waiting[0].prompt) <= budget):
                if (answer := self.waiting.popleft()).cancelled:
                    continue
                new.append(answer)
                budget -= len(answer.prompt)
        return new

    def _drop_cancelled(self) -> None:
        for row in range(len(self.rows) - 1, -1, -1):
            if self.rows[row].cancelled:
                self._leave(row)

    def _join(self, new: list[Answer]) -> None:
        logits = self.live.join([answer.prompt for answer in new], {place: answer.score for place, answer in enumerate(new) if answer.scores_prompt})
        self.rows += new
        self._accept(new, logits)

    def _accept(self, answers: list[Answer], logits: Tensor) -> None:
        """Choose a token for each of these rows, which are the last ones, tell it, and let leave who has ended."""
        how = [answer.how for answer in answers]
        tokens = pick(logits, how, [answer.chance() for answer in answers])
        told = odds(logits, tokens, how)
        first = len(self.rows) - len(answers)
        pieces = [(answer, self._taken(answer, token, one)) for answer, token, one in zip(answers, tokens, told, strict=True)]
        for place in range(len(pieces) - 1, -1, -1):
            if pieces[place][1].finish:
                self._leave(first + place)
        self.deliver(pieces)

    def _taken(self, answer: Answer, token: int, told: Odds | None) -> Piece:
        answer.last, answer.count = token, answer.count + 1
        shown = (token,), (told,) if told else ()
        if token in self.ends and not answer.ignores_end:
            return Piece(answer.text.rest(), (token,), shown[1] if answer.scores_prompt else (), finish="stop")  # counted, but no part of the text
        text, stopped = answer.text.add(token)
        if stopped:
            return Piece(text, *shown, finish="stop")
        if answer.count >= answer.max_tokens:
            return Piece(text + answer.text.rest(), *shown, finish="length")
        return Piece(text, *shown)

    def _leave(self, row: int) -> None:
        self.live.leave(row)
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last

    def _give_up(self, answers: set[Answer]) -> None:
        while self.rows:
            self._leave(len(self.rows) - 1)
        self.deliver([(answer, Piece("", (), finish="error")) for answer in answers])


def deliver_to(loop: Any) -> Deliver:
    """Hands pieces over to an asyncio loop, all of a step at once."""

    def hand_out(pieces: list[tuple[Answer, Piece]]) -> None:
        for answer, piece in pieces:
            answer.take(piece)

    def deliver(pieces: list[tuple[Answer, Piece]]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(hand_out, pieces)

    return deliver
