"""A version of a model that this process answers with: its tokenizer, its engine, and how a request becomes an answer."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from components.models.build import load, load_tokenizer
from components.schema.config import BadInput
from components.serving.engine import Answer, Closed, Deliver, Engine, Full, Piece, Sizes
from components.serving.protocol import ChatRequest, CompletionRequest, Generation, Message, Refusal, TokenizeRequest
from components.serving.replies import DONE, ChatReply, CompletionReply, Echo, Reply, Words, Written, event, usage_of
from components.serving.sampling import Sampling
from components.serving.turn import Turn

LONG_TEXT = 20_000
"""Characters; longer ones are turned into tokens beside the event loop."""
WARM_S = 300.0
LOADING = threading.Lock()
"""transformers loads one model at a time: of two at once in a process, both lack their tied weights."""

Reserve = Callable[[Turn, int], None]
"""Take tokens off a client's allowance. Raises Refusal(429)."""
Settle = Callable[[Turn, int], None]
"""Give back what was reserved and not used."""


@dataclass
class Done:
    """An answer that was given, for whoever looks at it afterwards (shadow, collection)."""

    turn: Turn
    asked: Generation
    answers: list[Answer]
    texts: list[str]


class Own:
    """A loaded version."""

    def __init__(self, folder: Path, name: str, version: str, sizes: Sizes, deliver: Deliver, others_busy: Callable[[], bool] | None = None) -> None:
        self.name, self.version, self.folder = name, version, folder
        self.tokenizer = load_tokenizer(folder)
        self.words = Words(self.tokenizer)
        with LOADING:
            model = load(folder)
        longest = getattr(model.config, "max_position_embeddings", None) or sizes.context or 2048
        self.context = min(sizes.context, longest) if sizes.context else longest
        self.engine = Engine(model, self.tokenizer, Sizes(sizes.rows, sizes.waiting, self.context, sizes.threads), deliver, others_busy)
        self._longest_token = max(len(token) for token in self.tokenizer.get_vocab())
        self._shrinks = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None) is not None

    @property
    def fingerprint(self) -> str:
        return f"{self.name}-{self.version}"

    def warm(self) -> None:
        """One short answer, so that nothing is compiled or laid out while people wait. Errors: BadInput where the model cannot write."""
        ended, failed = threading.Event(), []

        def take(piece: Piece) -> None:
            if piece.finish:
                failed.append(piece.finish == "error")
                ended.set()

        self.engine.submit([Answer([self.tokenizer.eos_token_id], min(4, self.context - 1), Sampling(), seed=0, ignores_end=True, take=take)])
        if not ended.wait(WARM_S) or failed[0]:
            self.close()
            raise BadInput(f"serve: {self.folder} is read but writes nothing (see the log), so it is not put in service. Try it with `modelyard chat {self.folder}`")

    def close(self) -> None:
        """Answers under way end; nothing new is taken."""
        self.engine.close()

    # ------------------------------------------------------------ prompts

    def prompt_of(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The exact text that the model reads. Raises Refusal(400)."""
        if not self.tokenizer.chat_template:
            raise Refusal(400, f"{self.name} has no chat template, so turns cannot be told apart. Use /v1/completions", code="no_chat_template", field="messages", reason="bad_request")
        try:
            return self.tokenizer.apply_chat_template([one.plain() for one in messages], add_generation_prompt=add_generation_prompt, tokenize=False)
        except (TemplateError, ValueError, TypeError) as error:
            raise Refusal(400, f"the model's chat template refuses these messages: {str(error)[:200]}", code="invalid_messages", field="messages", reason="bad_request") from None

    async def tokens_of(self, text: str, field: str) -> list[int]:
        """Raises Refusal(400) for a text that is longer than any context, without turning it into tokens."""
        if not self._shrinks and len(text) > self._longest_token * self.context:
            raise self.too_long(f"more than {self.context:,}", 0, field)
        if len(text) > LONG_TEXT:
            return await asyncio.to_thread(self.encoded, text)
        return self.encoded(text)

    def encoded(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def too_long(self, tokens: str, answer: int, field: str) -> Refusal:
        asked = f"{tokens} tokens" + (f" and {answer:,} for the answer" if answer else "")
        return Refusal(400, f"the prompt has {asked}, and the model's context is {self.context:,}. Shorten it or lower max_tokens", code="context_length_exceeded", field=field, reason="too_long")

    async def tokenize(self, asked: TokenizeRequest) -> dict[str, Any]:
        """As vLLM answers, and the exact prompt."""
        text = asked.prompt if asked.messages is None else self.prompt_of(asked.messages, asked.add_generation_prompt)
        ids = await self.tokens_of(text, "prompt")
        return {"count": len(ids), "max_model_len": self.context, "tokens": ids, "prompt": text}

    # ------------------------------------------------------------ answers

    async def answer(self, request: Request, asked: Generation, turn: Turn, reserve: Reserve, settle: Settle, seen: Callable[[Done], None]) -> Response:
        """The whole answer, or the response that streams it. Raises Refusal; Closed where another version has taken over."""
        prompts, field = await self._prompts(asked)
        answers = self._answers(asked, prompts, field)
        reserved = sum(len(one.prompt) for one in answers[:: asked.choices]) + sum(one.max_tokens for one in answers)
        reserve(turn, reserved)
        inbox = _Inbox(answers)
        try:
            self.engine.submit(answers)
        except (Full, Closed) as error:
            settle(turn, reserved)
            if isinstance(error, Closed):
                raise
            raise Refusal(429, "too many answers wait already. Ask again in a moment", code="queue_full", retry_after_s=1) from None
        run = _Run(self, inbox, self._reply(asked, answers), turn, sum(map(len, prompts)), lambda used: settle(turn, reserved - used), lambda parts: seen(Done(turn, asked, answers, [part.text for part in parts])))
        headers = {"x-modelyard-model": f"{self.name}/{self.version}", "x-modelyard-arm": turn.arm}
        if asked.stream:
            return StreamingResponse(run.events(asked.wants_usage), media_type="text/event-stream", headers={**headers, "cache-control": "no-store"})
        return JSONResponse(await run.whole(request), headers=headers)

    async def _prompts(self, asked: Generation) -> tuple[list[list[int]], str]:
        """Token ids of each prompt, and the field they came from."""
        if isinstance(asked, ChatRequest):
            return [await self.tokens_of(self.prompt_of(asked.messages), "messages")], "messages"
        assert isinstance(asked, CompletionRequest)
        return [await self._prompt(one) for one in asked.prompts], "prompt"

    async def _prompt(self, given: str | list[int]) -> list[int]:
        if isinstance(given, str):
            return await self.tokens_of(given, "prompt")
        if bad := [one for one in given if not 0 <= one < len(self.tokenizer)]:
            raise Refusal(400, f"prompt holds token {bad[0]}, and the vocabulary has {len(self.tokenizer)}", code="invalid_value", field="prompt", reason="bad_request")
        return given

    def _answers(self, asked: Generation, prompts: list[list[int]], field: str) -> list[Answer]:
        how = Sampling(1.0 if asked.temperature is None else asked.temperature, asked.top_p or 1.0, max(0, asked.top_k or 0), asked.alternatives)
        seed = random.getrandbits(63) if asked.seed is None else asked.seed
        found = []
        for prompt in prompts:
            if not prompt:
                raise Refusal(400, f"{field} is empty, so there is nothing to go on from", code="invalid_value", field=field, reason="bad_request")
            longest = asked.longest or self.context - len(prompt)
            if longest < 1 or len(prompt) + longest > self.context:
                raise self.too_long(f"{len(prompt):,}", longest if asked.longest else 0, field)
            scored = isinstance(asked, CompletionRequest) and asked.scores_prompt
            found += [Answer(prompt, longest, how, seed, len(found) + k, asked.stops, asked.ignore_eos, scored) for k in range(asked.choices)]
        return found

    def _reply(self, asked: Generation, answers: list[Answer]) -> Reply:
        told = (self.name, self.fingerprint, self.words, asked.alternatives is not None)
        if not isinstance(asked, CompletionRequest):
            return ChatReply(*told)
        given = [prompt for prompt in asked.prompts for _ in range(asked.choices)]
        return CompletionReply(*told, [self._echo(*both) if asked.echo else Echo() for both in zip(given, answers, strict=True)])

    def _echo(self, prompt: str | list[int], answer: Answer) -> Echo:
        text = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)
        return Echo(text, answer.prompt, answer.prompt_odds) if answer.scores_prompt else Echo(text)


class _Inbox:
    """Pieces as they come, in the event loop's thread."""

    def __init__(self, answers: list[Answer]) -> None:
        self.answers, self._pieces, self._came = answers, deque(), asyncio.Event()
        for answer in answers:
            answer.take = lambda piece, answer=answer: self._take(answer, piece)

    def _take(self, answer: Answer, piece: Piece) -> None:
        self._pieces.append((answer, piece))
        self._came.set()

    async def parts(self) -> AsyncIterator[dict[int, Written]]:
        """What came since the last look, by choice, until all have ended. Raises Refusal(500) where the engine failed."""
        open_ = {answer.index for answer in self.answers}
        while open_:
            await self._came.wait()
            self._came.clear()
            parts: dict[int, Written] = {}
            while self._pieces:
                answer, piece = self._pieces.popleft()
                if answer.index in open_:
                    parts.setdefault(answer.index, Written(answer.index)).add(piece)
                    if piece.finish:
                        open_.discard(answer.index)
            if any(part.finish == "error" for part in parts.values()):
                raise Refusal(500, "the engine failed while this was written; it is in the endpoint's log. Ask again", code="engine_failed")
            yield parts


class _Run:
    """One request's answers on their way out."""

    def __init__(self, own: Own, inbox: _Inbox, reply: Reply, turn: Turn, prompt_tokens: int, used: Callable[[int], None], seen: Callable[[list[Written]], None]) -> None:
        self.own, self.inbox, self.reply, self.turn, self.prompt_tokens, self.used, self.seen = own, inbox, reply, turn, prompt_tokens, used, seen
        self.written = [Written(answer.index) for answer in inbox.answers]

    async def whole(self, request: Request) -> dict[str, Any]:
        """The body of an answer. A client that goes away ends it."""
        writing = asyncio.ensure_future(self._collect())
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                raise ConnectionResetError("the client went away")
            writing.result()
        finally:
            writing.cancel()
            gone.cancel()
            self._over()
        return self.reply.whole(self.written, self._usage())

    async def events(self, wants_usage: bool) -> AsyncIterator[bytes]:
        """A stream's events. A client that goes away ends it."""
        try:
            yield self.reply.begin(len(self.written))
            async for parts in self._parts():
                yield b"".join(self.reply.chunk(part) for part in parts.values() if part.text or part.finish or part.odds)
            yield (self.reply.usage(self._usage()) if wants_usage else b"") + DONE
        except Refusal as refusal:
            self.turn.status = str(refusal.status)
            yield event(refusal.body())
        finally:
            self._over()

    async def _collect(self) -> None:
        async for _ in self._parts():
            pass

    async def _parts(self) -> AsyncIterator[dict[int, Written]]:
        async for parts in self.inbox.parts():
            self.turn.first_token()
            for index, part in parts.items():
                whole = self.written[index]
                offset = len(whole.text)
                whole.offsets += [offset + one for one in part.offsets]
                part.offsets = whole.offsets[len(whole.tokens) :]
                whole.tokens, whole.odds = whole.tokens + part.tokens, whole.odds + part.odds
                whole.text, whole.finish = whole.text + part.text, part.finish
            yield parts

    def _usage(self) -> dict[str, int]:
        return usage_of(self.prompt_tokens, sum(len(one.tokens) for one in self.written))

    def _over(self) -> None:
        usage = self._usage()
        self.own.engine.cancel(self.inbox.answers)
        self.turn.tokens(usage["prompt_tokens"], usage["completion_tokens"])
        self.used(usage["total_tokens"])
        if all(one.finish in ("stop", "length") for one in self.written):
            self.seen(self.written)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
