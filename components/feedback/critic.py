"""A critic: who writes texts and prefers one of two labels. A model of ours, or an endpoint; both answer the same two calls.

A preference is the probability of the first label against the second, read off the model's own distribution over the next token
(Kadavath et al. 2022, arXiv:2207.05221; Bai et al. 2022), which tells more than the word it would say. An endpoint that gives no log-probabilities
is read by its word: 1 or 0.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from components.feedback.endpoint import Endpoint, Refused
from components.feedback.wording import LABELS, Message, label_in
from components.schema.config import BadInput
from components.schema.feedback import CriticConfig

Chat = list[Message]
TOP_LOGPROBS = 20  # the most that OpenAI's interface gives


class Critic(Protocol):
    """Judges chats. A list's order is kept; None stands where there is no answer."""

    batched: bool
    """Whether a whole batch should go into one call; if not, rows go in by themselves, from several threads."""
    calls: int
    """Texts and labels asked for so far."""

    def write(self, chats: Sequence[Chat], seed: int) -> list[str | None]:
        """A text for each chat; None where the chat is too long for the critic, or refused."""
        ...

    def prefer(self, chats: Sequence[Chat]) -> list[float | None]:
        """The probability of the first label for each chat; None where no label can be read."""
        ...


def made(config: CriticConfig, folder: Path | None) -> Critic:
    """The critic that a config names; `folder` holds a model of ours. Errors: BadInput, also where an endpoint does not answer."""
    if config.url is None:
        from components.feedback.local import LocalModel

        return LocalModel(folder, config.max_new_tokens, config.temperature)
    return EndpointCritic(config)


class EndpointCritic:
    """A model behind an OpenAI-compatible endpoint."""

    batched = False

    def __init__(self, config: CriticConfig) -> None:
        key = os.environ.get(config.key_variable)
        if key and not config.is_private:
            raise BadInput(
                f"critic: {config.url} is not encrypted and {config.key_variable} holds a key, which anyone on the way could read. "
                f"Use https, or unset {config.key_variable}"
            )
        self.config, self.calls = config, 0
        self.endpoint = Endpoint(config.url or "", config.model, key, config.timeout_s, config.retries)
        try:
            self.prefer([[{"role": "user", "content": f"Reply with one letter, {LABELS[0]}."}]])
        except Refused as error:
            raise BadInput(
                f"critic: {config.url} refuses the simplest request ({error}), so nothing can be judged. Correct critic.model, or look into the endpoint's log"
            ) from None

    def write(self, chats: Sequence[Chat], seed: int) -> list[str | None]:
        """One request a chat. A sampled text follows from the seed where the endpoint honours it."""
        options = {"max_tokens": self.config.max_new_tokens, "temperature": self.config.temperature, "seed": seed % 2**31}
        return [_said(choice) if (choice := self._asked(chat, options)) else None for chat in chats]

    def prefer(self, chats: Sequence[Chat]) -> list[float | None]:
        """One request a chat, answered by a letter."""
        options = {"max_tokens": self.config.label_tokens, "temperature": 0.0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return [_probability(choice) if (choice := self._asked(chat, options)) else None for chat in chats]

    def _asked(self, chat: Chat, options: dict[str, Any]) -> dict[str, Any] | None:
        self.calls += 1
        try:
            return self.endpoint.chat(chat, **options)
        except Refused:
            if self.calls == 1:
                raise
            return None


def _said(choice: dict[str, Any]) -> str | None:
    content = choice["message"].get("content")
    return content.strip() if isinstance(content, str) else None


def _probability(choice: dict[str, Any]) -> float | None:
    """Of the first label, by the distribution over the token that says a label, else by the word."""
    tokens = (choice.get("logprobs") or {}).get("content") or []
    for token in tokens:
        shares = dict.fromkeys(LABELS, 0.0)
        for other in token.get("top_logprobs") or [token]:
            if (label := other["token"].strip(' "*()')) in shares:
                shares[label] += math.exp(other["logprob"])
        if token["token"].strip(' "*()') in LABELS:
            return shares[LABELS[0]] / sum(shares.values())
    label = label_in(_said(choice) or "")
    return None if label is None else float(label == LABELS[0])
