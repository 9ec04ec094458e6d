"""Feedback by people: how a dataset of questions is handed out, and what one person says about one question."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, StringConstraints, field_validator, model_validator

from components.schema.config import Config, Fraction, Name

FLAGS = ("harmful", "hateful", "sexual", "private", "other")  # why an answer is not safe
QUALITIES = ("helpful", "harmless", "honest")  # each from 1 to 5 (Askell et al. 2021, arXiv:2112.00861)
LONGEST_TEXT, MOST_ANSWERS = 20_000, 9  # characters; nine, so that each place has a key

Text = Annotated[str, StringConstraints(max_length=LONGEST_TEXT)]


class AskConfig(Config):
    """One dataset of questions to people."""

    name: Name = "people"
    """Name of the dataset: what people say is exported to data/feedback/<name>."""
    seed: NonNegativeInt = 0
    """Decides the answers that are sampled, and the order in which each person sees them."""
    overlap: PositiveInt = 1
    """How many different people rank each question."""
    gold_share: Fraction = 0.1
    """Share of the questions shown to a person whose right order is known."""
    lease_minutes: PositiveFloat = 30.0
    """How long a question is kept for the person who has it on the screen; then somebody else may have it."""
    retrain_after: NonNegativeInt = 100
    """New rankings after which recipes that read the dataset are retrained; 0 = never by themselves."""
    guide: str = ""
    """What people are told before they rank, as plain text."""


class Edit(Config):
    """An answer as it should have been."""

    answer: NonNegativeInt | None = None
    """The answer that it was made from, by its place; empty = written anew."""
    text: Text

    @field_validator("text")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("it is empty: an answer that says nothing would be learnt. Write something, or leave the edit out")
        return text


class Opinion(Config):
    """What one person says about one question. Lists go by the answers' places."""

    ranks: tuple[PositiveInt, ...] | None = None
    """Rank of each answer, 1 the best; equal ranks are ties. Empty only where all are bad."""
    all_bad: bool = False
    """No answer is good enough to be learnt from."""
    flags: tuple[tuple[Literal[FLAGS], ...], ...] = ()
    """Why each answer is not safe; empty = nobody said."""
    ratings: tuple[dict[Literal[QUALITIES], Annotated[int, Field(ge=1, le=5)]], ...] = ()
    """How helpful, harmless and honest each answer is, 1 to 5; empty = nobody said."""
    edit: Edit | None = None
    """A better answer in the person's own words, which becomes an example for SFT."""
    note: Annotated[str, StringConstraints(max_length=2_000)] = ""
    """Anything else."""
    seconds: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    """How long the question was on the screen."""

    @model_validator(mode="before")
    @classmethod
    def _can_be_stored(cls, raw: Any) -> Any:
        """Half a surrogate pair and NUL are no text that every database keeps."""
        for text in _texts(raw):
            if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ValueError("a text holds NUL or half a surrogate pair, which cannot be stored. Remove it")
        return raw

    @model_validator(mode="after")
    def _is_whole(self) -> Opinion:
        if self.ranks is None and not self.all_bad:
            raise ValueError("it has neither ranks nor all_bad, so it says nothing about which answer is better. Give a rank to each answer")
        if not math.isfinite(self.seconds):
            raise ValueError("seconds is no number. Leave it out")
        return self

    def of(self, answers: int) -> str | None:
        """Why this cannot be about a question with so many answers; None where it can."""
        for name in ("ranks", "flags", "ratings"):
            if (given := getattr(self, name)) and len(given) != answers:
                return f"{name} has {len(given)} entries for {answers} answers: it is not clear which is whose. Give one for each answer"
        if self.edit and self.edit.answer is not None and self.edit.answer >= answers:
            return f"edit.answer is {self.edit.answer} and there are {answers} answers, numbered from 0. Correct or empty it"
        return None

    def moved(self, places: list[int]) -> Opinion:
        """The same with the answer at places[i] in place i."""
        changes: dict[str, Any] = {name: tuple(given[k] for k in places) for name in ("ranks", "flags", "ratings") if (given := getattr(self, name))}
        if self.edit and self.edit.answer is not None:
            changes["edit"] = Edit(answer=places.index(self.edit.answer), text=self.edit.text)
        return self.model_copy(update=changes)


def _texts(raw: Any) -> list[str]:
    """Every string in a value, at any depth."""
    if isinstance(raw, str):
        return [raw]
    inner = list(raw.values()) + list(raw) if isinstance(raw, dict) else raw if isinstance(raw, list | tuple) else []
    return [text for one in inner for text in _texts(one)]


def dense(ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Ranks without gaps: 1 is the best, equal ones stay equal, the next is one more."""
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)), start=1)}
    return tuple(places[rank] for rank in ranks)
