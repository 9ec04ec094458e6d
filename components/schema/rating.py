"""Rating models against each other: whose answers, on which prompts, and who says which answer is better.

One YAML file is one comparison: `modelyard rate rating.yaml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from components.schema.config import Config, Name
from components.schema.feedback import CONNECTION, CriticConfig
from components.schema.files import read_file

MOST_MODELS = 26  # a letter each on a sheet for people


class PeopleConfig(Config):
    """People rank blind answers: a first run writes a sheet, a second one reads it, filled in."""

    rankings: str | None = None
    """The sheet, filled in; empty = the sheet is written and nothing is rated yet."""


class JudgeConfig(Config):
    """Who says which of two answers is better; exactly one of the three."""

    reward: str | None = None
    """A reward model: a folder, or models:/NAME@ALIAS."""
    critic: CriticConfig | None = None
    """A chat model of ours, or an OpenAI-compatible endpoint; it is asked twice, the answers changing places."""
    people: PeopleConfig | None = None
    """People, with a sheet that does not say whose answer is whose."""

    @model_validator(mode="after")
    def _is_one(self) -> JudgeConfig:
        given = [name for name in ("reward", "critic", "people") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"judge has {', '.join(given) or 'nobody'}: exactly one of reward, critic and people can say which answer is better. Keep one")
        return self


class RatingConfig(Config):
    """Models rated by comparisons of their answers."""

    name: Name
    """Name of the comparison."""
    seed: NonNegativeInt = 0
    """Decides sampled answers, the order on a sheet, and the bootstrap of the intervals."""
    models: Annotated[dict[Name, str], Field(min_length=2, max_length=MOST_MODELS)]
    """Chat models by a name for the table: each a folder, or models:/NAME@ALIAS."""
    judge: JudgeConfig
    """Who decides."""
    prompts: str
    """JSON lines with a `prompt` (text or turns) or `messages` (a chat, taken up to its last answer); such as data/tiny/preferences/heldout.jsonl."""
    max_prompts: PositiveInt | None = 128
    """Take at most this many different prompts, the first of the file; empty = all."""
    max_new_tokens: PositiveInt = 128
    """Longest answer."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of the answers; 0 = the likeliest words."""
    batch_size: PositiveInt = 16
    """Prompts answered together, and pairs that a model of ours judges together."""

    @classmethod
    def load(cls, path: str | Path, sets: Sequence[str] = ()) -> RatingConfig:
        """Read a file, apply `a.b=value` overrides, and report every problem at once. Errors: BadInput."""
        return read_file(cls, path, sets, "rating", example="judge.critic.model=NAME", compare="recipes/rating/tiny.yaml")

    def parted(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What defines the result besides the files it reads, and where these and the endpoint are found, which changes no result."""
        whole = self.model_dump(mode="json")
        around: dict[str, Any] = {"name": whole.pop("name"), "prompts": whole.pop("prompts"), "models": whole["models"], "judge": whole["judge"]}
        whole["models"] = list(self.models)
        if critic := self.judge.critic:
            kept = {name: value for name, value in critic.model_dump(mode="json").items() if name not in CONNECTION}
            whole["judge"] = {"critic": kept if critic.url else {name: value for name, value in kept.items() if name != "model"}}
        else:
            whole["judge"] = {name: True for name, value in whole["judge"].items() if value is not None}
        return whole, around

    @classmethod
    def joined(cls, defining: dict[str, Any], around: dict[str, Any]) -> RatingConfig:
        """The opposite of `parted`."""
        return cls.model_validate({**defining, **around})
