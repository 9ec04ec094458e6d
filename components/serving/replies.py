"""Answers in OpenAI's shapes: whole, or as the chunks of a stream; chat and completions.

    reply = ChatReply(model="modelyard", fingerprint="modelyard-3", words=tokenizer)
    reply.whole([written, ...], usage)      # the body of an answer
    reply.chunk(0, piece)                   # one event of a stream, as bytes
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from components.serving.engine import Finish, Piece
from components.serving.sampling import Odds
from components.serving.text import Text

DONE = b"data: [DONE]\n\n"
LINE_ENDS = {ord(one): f"\\u{ord(one):04x}" for one in "\x85\u2028\u2029"}
"""Beside those that JSON escapes itself."""


@dataclass
class Written:
    """One choice as far as it is written."""

    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    odds: list[Odds] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, piece: Piece) -> None:
        self.offsets += [len(self.text)] * len(piece.tokens)
        self.text, self.finish = self.text + piece.text, piece.finish
        self.tokens += piece.tokens
        self.odds += piece.odds


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event. What some clients take for the end of a line (httpx does) is escaped, so that each event stays on one."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(LINE_ENDS)
    return b"data: " + text.encode("utf-8", "replace") + b"\n\n"


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Words:
    """What a token looks like, remembered."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self._known = tokenizer, {}  # type: PreTrainedTokenizerBase, dict[int, tuple[str, list[int] | None]]

    def __call__(self, token: int) -> tuple[str, list[int] | None]:
        """Its text, and its bytes; None where it holds a part of a character only."""
        if token not in self._known:
            text = self.tokenizer.decode([token])
            self._known[token] = text, None if "\ufffd" in text else list(text.encode())
        return self._known[token]


class Reply:
    """What both shapes share."""

    kind = prefix = ""

    def __init__(self, model: str, fingerprint: str, words: Words, wants_odds: bool) -> None:
        self.words, self.wants_odds = words, wants_odds
        self.head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "object": self.kind, "created": int(time.time()), "model": model, "system_fingerprint": fingerprint}

    def whole(self, written: Sequence[Written], usage: dict[str, int]) -> dict[str, Any]:
        return {**self.head, "choices": [self._choice(one) for one in written], "usage": usage}

    def usage(self, usage: dict[str, int]) -> bytes:
        """The last chunk of a stream that counts."""
        return event({**self._chunk_head(), "choices": [], "usage": usage})

    def chunk(self, part: Written) -> bytes:
        return event({**self._chunk_head(), "choices": [self._delta(part)]})

    def begin(self, choices: int) -> bytes:
        """What a stream begins with."""
        return b""

    def _chunk_head(self) -> dict[str, Any]:
        return self.head

    def _choice(self, one: Written) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, part: Written) -> dict[str, Any]:
        raise NotImplementedError


class ChatReply(Reply):
    """chat.completion"""

    kind, prefix = "chat.completion", "chatcmpl"

    def begin(self, choices: int) -> bytes:
        return b"".join(event({**self._chunk_head(), "choices": [{"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]}) for index in range(choices))

    def _chunk_head(self) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk"}

    def _choice(self, one: Written) -> dict[str, Any]:
        return {"index": one.index, "message": {"role": "assistant", "content": one.text, "refusal": None}, "logprobs": self._odds(one), "finish_reason": one.finish}

    def _delta(self, part: Written) -> dict[str, Any]:
        return {"index": part.index, "delta": {"content": part.text} if part.text else {}, "logprobs": self._odds(part), "finish_reason": part.finish}

    def _odds(self, one: Written) -> dict[str, Any] | None:
        if not self.wants_odds:
            return None
        content = [{**self._token(token, odds.logprob), "top_logprobs": [self._token(*other) for other in odds.top]} for token, odds in zip(one.tokens, one.odds, strict=False)]  # the end of a turn has none
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text, raw = self.words(token)
        return {"token": text, "logprob": logprob, "bytes": raw}


@dataclass(frozen=True)
class Echo:
    """The prompt before a choice's text; nothing unless it is asked for."""

    text: str = ""
    tokens: Sequence[int] = ()
    odds: Sequence[Odds] = ()
    """Of the tokens from the second on; the engine fills it."""

    def offsets(self, words: Words) -> list[int]:
        """Where each token's text begins, as in an answer."""
        text, found, at = Text(words.tokenizer, keeps_special=True), [], 0
        for token in self.tokens:
            found.append(at)
            at += len(text.add(token)[0])
        return found


class CompletionReply(Reply):
    """text_completion; `echoes`: what each choice begins with."""

    kind, prefix = "text_completion", "cmpl"

    def __init__(self, model: str, fingerprint: str, words: Words, wants_odds: bool, echoes: Sequence[Echo]) -> None:
        super().__init__(model, fingerprint, words, wants_odds)
        self.echoes = echoes

    def begin(self, choices: int) -> bytes:
        return b"".join(self.chunk(Written(index, echo.text)) for index, echo in enumerate(self.echoes) if echo.text)

    def _choice(self, one: Written) -> dict[str, Any]:
        return {"index": one.index, "text": self.echoes[one.index].text + one.text, "logprobs": self._odds(one), "finish_reason": one.finish}

    def _delta(self, part: Written) -> dict[str, Any]:
        return {"index": part.index, "text": part.text, "logprobs": self._odds(part), "finish_reason": part.finish}

    def _odds(self, one: Written) -> dict[str, Any] | None:
        echo = self.echoes[one.index]
        if not self.wants_odds or not (one.odds or echo.tokens):
            return None
        told = [*([None] if echo.tokens else []), *echo.odds, *one.odds]  # nothing comes before a prompt's first token
        return {
            "tokens": [self.words(token)[0] for token in (*echo.tokens, *one.tokens[: len(one.odds)])],
            "token_logprobs": [odds and odds.logprob for odds in told],
            "top_logprobs": [odds and self._top(odds) for odds in told],
            "text_offset": [*echo.offsets(self.words), *(len(echo.text) + offset for offset in one.offsets[: len(one.odds)])],
        }

    def _top(self, odds: Odds) -> dict[str, float]:
        """By text; of tokens that look alike (parts of a character do), the likeliest."""
        found: dict[str, float] = {}
        for token, logprob in odds.top:
            found.setdefault(self.words(token)[0], logprob)
        return found
