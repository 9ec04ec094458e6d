"""AI feedback: whose answers are judged, by whom, by which principles, and on which prompts.

One YAML file is one dataset of feedback: `modelyard feedback critic feedback.yaml`. Where the critic is reached, and how patiently, changes
no result and is no part of a dataset's identity (`CONNECTION`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from components.schema.config import Config, Name
from components.schema.files import read_file

CONNECTION = ("url", "key_variable", "concurrency", "timeout_s", "retries")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class CriticConfig(Config):
    """Who criticises, revises and prefers: a model of ours, or an OpenAI-compatible endpoint."""

    model: str
    """A checkpoint's folder or models:/NAME@ALIAS; or, where `url` is given, the model's name at that endpoint."""
    url: str | None = None
    """Base URL of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1; empty = `model` is loaded here."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; unset = none is sent. The key itself never stands in a file."""
    concurrency: PositiveInt = 4
    """Prompts that are worked on at once (endpoint)."""
    timeout_s: PositiveFloat = 120.0
    """Seconds after which a request counts as lost (endpoint)."""
    retries: NonNegativeInt = 5
    """How often a request is sent again after an error that may pass: 429, 5xx, a lost connection; with growing pauses (endpoint)."""
    max_new_tokens: PositiveInt = 256
    """Longest critique and longest revision."""
    label_tokens: PositiveInt = 8
    """Longest reply that names the better answer. A model that thinks aloud first needs more (endpoint)."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of critiques and revisions; 0 = the likeliest words."""

    @model_validator(mode="after")
    def _is_reached_safely(self) -> CriticConfig:
        if self.url is None:
            return self
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url {self.url!r} is no address of an endpoint: nothing could be asked. Write for example http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "url holds a name, a password or a query: it would be written into records. Put the key into the environment variable of key_variable"
            )
        return self

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read what is sent."""
        parts = urlsplit(self.url or "")
        return parts.scheme == "https" or parts.hostname in LOOPBACK


class FeedbackConfig(Config):
    """Preference pairs made by a critic that follows a constitution (Bai et al. 2022, arXiv:2212.08073)."""

    name: Name
    """Name of the dataset: what is made is kept under data/feedback/<name>."""
    seed: NonNegativeInt = 0
    """Decides the answers that are sampled and which principle each prompt is judged by."""
    policy: str
    """Whose answers: a chat model's folder, or models:/NAME@ALIAS."""
    critic: CriticConfig
    """Who judges."""
    constitution: str
    """YAML or Markdown file of principles."""
    prompts: str
    """JSON lines with a `prompt` (text or turns) or `messages` (a chat, taken up to its last answer); such as data/tiny/preferences/train.jsonl."""
    max_prompts: PositiveInt | None = 256
    """Take at most this many different prompts, the first of the file; empty = all."""
    max_new_tokens: PositiveInt = 128
    """Longest answer of the policy."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature of the policy's answers."""
    revisions: PositiveInt = 1
    """Rounds of critique and revision, each by a principle drawn anew; the last revision is compared with the first answer."""
    min_preference: Annotated[float, Field(ge=0.5, lt=1)] = 0.5
    """A pair is kept where the critic's mean probability of the better side, over both orders, is above this."""
    orders_must_agree: bool = True
    """Leave out pairs whose better side changes with the order in which the two are shown."""
    batch_size: PositiveInt = 16
    """Prompts answered together; a killed run of a local critic goes on from the last whole batch, of an endpoint from the last prompt."""

    @classmethod
    def load(cls, path: str | Path, sets: Sequence[str] = ()) -> FeedbackConfig:
        """Read a file, apply `a.b=value` overrides, and report every problem at once. Errors: BadInput."""
        return read_file(cls, path, sets, "feedback", example="critic.temperature=0.7", compare="recipes/feedback/tiny.yaml")

    def parted(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What defines the result besides the files it reads, and how the critic is reached; together with the rest they make the config again."""
        whole = self.model_dump(mode="json")
        critic = whole.pop("critic")
        connection = {name: critic.pop(name) for name in CONNECTION}
        places = {name: whole.pop(name) for name in ("name", "policy", "constitution", "prompts")}
        if connection["url"] is None:
            places["critic_model"] = critic.pop("model")
        return {**whole, "critic": critic}, {**places, "connection": connection}

    @classmethod
    def joined(cls, defining: dict[str, Any], surrounding: dict[str, Any]) -> FeedbackConfig:
        """The opposite of `parted`."""
        rest = {name: value for name, value in surrounding.items() if name not in ("connection", "critic_model")}
        critic = {**defining["critic"], **surrounding["connection"]}
        critic.setdefault("model", surrounding.get("critic_model"))
        return cls.model_validate({**defining, **rest, "critic": critic})
