"""What an endpoint is besides its routes: arms, keys, limits, who watches them, and how it ends.

    endpoint = Endpoint(ServeConfig(...))
    endpoint.start(loop)                  # begins to look after its arms
    await endpoint.answer(request, asked, turn)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from components.schema.config import BadInput
from components.schema.serving import ServeConfig
from components.serving.arms import Arm, Arms, Loader, Version
from components.serving.collect import HEADER, Collector, consents
from components.serving.drift import Drift
from components.serving.engine import Answer, Closed, Full, Piece, deliver_to
from components.serving.keys import Keys, default_path
from components.serving.limits import Limits
from components.serving.metrics import Metrics
from components.serving.own import Done, Own
from components.serving.protocol import Generation, Refusal
from components.serving.turn import Turn

log = logging.getLogger("modelyard.serving")

SHADOWS = 64
"""Answers that may wait for the shadow; beyond, they are dropped and counted."""


class Endpoint:
    """One server's state."""

    def __init__(self, config: ServeConfig) -> None:
        self.config, self.metrics = config, Metrics()
        usual = default_path()
        self.keys = Keys(config.keys or (usual if usual.exists() or not config.is_local else None), os.environ.get("MODELYARD_SERVE_KEYS", ""))
        self.limits = Limits(config.requests_per_minute, config.tokens_per_minute)
        self.collector = Collector(config.collect, config.collect_share) if config.collect else None
        self.arms: Arms
        self.drift: Drift | None = None
        self.draining, self.under_way = False, 0
        self._shadows = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    def prepare(self, loop: asyncio.AbstractEventLoop) -> Arms:
        """Its arms, empty as yet. Pieces of answers go to this loop."""
        self.arms = Arms(self.config, Loader(self.config, deliver_to(loop), self._is_busy))
        return self.arms

    # ------------------------------------------------------------ arms

    def start(self) -> None:
        """Look after the arms from now on."""
        for arm in self.arms.all:
            self._keep(self._follow(arm))

    async def _follow(self, arm: Arm) -> None:
        told = None
        while not self.draining:
            try:
                if await asyncio.to_thread(arm.look):
                    self._in_service(arm)
                told = None
            except BadInput as error:
                if str(error) != told:
                    log.warning("%s: %s", arm.name, error)
                told = str(error)
            except Exception:
                log.exception("%s could not be looked at", arm.name)
            await asyncio.sleep(self.config.poll_s)

    def _in_service(self, arm: Arm) -> None:
        self.metrics.info.clear()
        for one in self.arms.all:
            if one.version:
                self.metrics.info.labels(one.version.name, one.version.version, one.name).set(1)
        if arm is self.arms.main and arm.folder is not None:
            self._keep(self._watch_drift(arm))

    async def _watch_drift(self, arm: Arm) -> None:
        """What was served is compared with what this version was trained on, where that is known."""
        from components.serving.reference import profile_of

        self.drift = None
        self.metrics.drift.clear()
        try:
            self.drift = Drift(await asyncio.to_thread(profile_of, arm.folder))
        except BadInput as error:
            log.info("%s", error)

    def _is_busy(self) -> bool:
        """Whether an arm that people wait for has something to do."""
        return any(isinstance(arm.version, Own) and arm.version.engine.busy for arm in self.arms.all if arm is not self.arms.shadow)

    def scraped(self) -> bytes:
        """/metrics"""
        waiting = 0
        for arm in self.arms.all:
            engine = arm.version.engine if isinstance(arm.version, Own) else None
            self.metrics.running.labels(arm.name).set(len(engine.rows) if engine else getattr(arm.version, "busy_rows", 0))
            waiting += len(engine.waiting) if engine and arm is not self.arms.shadow else 0
        self.metrics.waiting.set(waiting)
        self.metrics.drift.clear()  # a version without a profile must not go on with the numbers of the one before
        if self.drift:
            for measure, value in self.drift.measures().items():
                self.metrics.drift.labels(self.arms.main.version.name, measure).set(value)
        return self.metrics.text()

    # ------------------------------------------------------------ who may ask

    def admit(self, request: Request, turn: Turn) -> None:
        """Raises Refusal(503) where it is ending, Refusal(401) for an unknown key."""
        if self.draining:
            raise Refusal(503, "this endpoint is ending. Ask another, or again in a moment", code="shutting_down", retry_after_s=5)
        if not self.keys:
            return
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        found = self.keys.known(text.strip()) if kind.lower() == "bearer" and text.strip() else None
        if found is None:
            what = "the key is not known here" if text else "no key was given"
            raise Refusal(401, f"{what}. Send the header Authorization: Bearer KEY with a key of this endpoint", code="invalid_api_key")
        turn.client, turn.key = found
        turn.named = True

    def reserve(self, turn: Turn, tokens: int) -> None:
        """Raises Refusal(429) where a client has used up its minute."""
        wait_s = self.limits.take(turn.client, tokens, turn.own_limits)
        if wait_s > 0:
            raise Refusal(429, f"your requests or tokens of this minute are used up. Ask again in {wait_s:.0f} s", code="rate_limit_exceeded", retry_after_s=wait_s)

    def settle(self, turn: Turn, tokens: int) -> None:
        self.limits.give_back(turn.client, tokens)

    # ------------------------------------------------------------ answers

    async def answer(self, request: Request, asked: Generation, turn: Turn) -> Response:
        """By the arm that it falls to; a version that is taken out of service meanwhile leaves it to the next. Raises Refusal."""
        may_keep = consents(asked, request.headers.get(HEADER))
        while True:
            version = self._chosen(asked, turn)
            try:
                return await version.answer(request, asked, turn, self.reserve, self.settle, lambda done: self._seen(done, may_keep))
            except Closed:
                await asyncio.sleep(0)

    def _chosen(self, asked: Generation, turn: Turn) -> Version:
        arm, version = self.arms.choose(asked.model, asked.user or (turn.client if turn.named else None))
        turn.answered_by(arm.name, version.name, version.version)
        return version

    def _seen(self, done: Done, may_keep: bool) -> None:
        """An answer is out: what becomes of it besides."""
        of_main = done.turn.arm == self.arms.main.name
        if of_main and self.drift:
            self.drift.add(done.answers[0].prompt)
        if self.collector:
            self.collector.offer(done, may_keep)
        if of_main and self.arms.shadow and isinstance(self.arms.shadow.version, Own):
            self._shadowed(done, self.arms.shadow.version)

    def _shadowed(self, done: Done, shadow: Own) -> None:
        """The same prompts and chances to the shadow."""
        copies = [Answer(one.prompt, one.max_tokens, one.how, one.seed, one.index, one.stops, one.ignores_end) for one in done.answers]
        if self._shadows + len(copies) > SHADOWS or len(copies[0].prompt) + copies[0].max_tokens > shadow.context:
            self.metrics.shadow.labels("dropped").inc()
            return
        self._shadows += len(copies)
        texts, open_ = [""] * len(copies), {copy.index for copy in copies}

        def take(index: int, piece: Piece) -> None:
            texts[index] += piece.text
            if piece.finish:
                open_.discard(index)
                self._shadows -= 1
                if piece.finish == "error":
                    texts[index] = "\0failed"
                if not open_:
                    self.metrics.shadow.labels("failed" if "\0failed" in texts else "same" if texts == done.texts else "different").inc()

        for copy in copies:
            copy.take = lambda piece, index=copy.index: take(index, piece)
        try:
            shadow.engine.submit(copies)
        except (Full, Closed):
            self._shadows -= len(copies)
            self.metrics.shadow.labels("dropped").inc()

    # ------------------------------------------------------------ the end

    async def end(self) -> None:
        """Take nothing new, wait for what is under way, and no longer than stop_s."""
        self.draining = True
        log.info("ending: %d requests are under way", self.under_way)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.stop_s):
                while self.under_way:
                    await asyncio.sleep(0.02)

    def close(self) -> None:
        """End engines and children; what is still under way is cut off."""
        for arm in self.arms.all:
            if isinstance(arm.version, Own):
                arm.version.engine.close(cancel=True)
            elif arm.version:
                arm.version.close()
        for task in self._tasks:
            task.cancel()
        if self.collector:
            self.collector.close()

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
