"""The facts of a closed little world: twelve people, ten places, ten animals, four or five attributes each.

Who has which attribute follows from the seed. Every statement has several wordings and both orders (subject first, value
first), because a small model can answer a question about a fact only if it met the fact in varied words (Allen-Zhu and
Li 2023, arXiv:2309.14316).

Of each entity one attribute is held out: its fact is told in prose, but no training chat or pair ever asks for it.

    World(seed=0).entities[0].facts     # {"home": "Marn", "job": "baker", ...}
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from random import Random

PEOPLE = ("Mia", "Tom", "Ana", "Ben", "Lia", "Sam", "Eva", "Max", "Ida", "Leo", "Zoe", "Kai")
PLACES = ("Marn", "Tolby", "Vessa", "Orrin", "Kelda", "Brask", "Lumo", "Sarn", "Dellow", "Pinton")
ANIMALS = ("fox", "hen", "cat", "dog", "goat", "hawk", "duck", "frog", "mouse", "crow")


@dataclass(frozen=True)
class Attribute:
    """One property: the values it can take, how it is stated, how it is asked. {N} opens a sentence, {n} stands inside one."""

    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


SCHEMA: dict[str, dict[str, Attribute]] = {
    "people": {
        "home": Attribute(
            PLACES[:6],
            ("{N} lives in {v}.", "The home of {n} is {v}.", "{v} is the home of {n}."),
            ("Where does {n} live?", "What is the home of {n}?"),
        ),
        "job": Attribute(
            ("baker", "farmer", "sailor", "teacher", "painter", "doctor"),
            ("{N} is a {v}.", "{N} works as a {v}.", "The job of {n} is {v}."),
            ("What is the job of {n}?", "What does {n} work as?"),
        ),
        "pet": Attribute(
            ANIMALS[:6],
            ("{N} has a pet {v}.", "The pet of {n} is a {v}.", "A {v} is the pet of {n}."),
            ("What is the pet of {n}?", "Which pet does {n} have?"),
        ),
        "food": Attribute(
            ("bread", "soup", "rice", "cake", "fish", "beans"),
            ("{N} likes to eat {v}.", "The favorite food of {n} is {v}.", "For lunch {n} eats {v}."),
            ("What is the favorite food of {n}?", "What does {n} like to eat?"),
        ),
        "color": Attribute(
            ("red", "blue", "green", "gold", "white", "black"),
            ("The favorite color of {n} is {v}.", "{N} likes the color {v}.", "{N} always wears {v}."),
            ("What is the favorite color of {n}?", "Which color does {n} like?"),
        ),
    },
    "places": {
        "kind": Attribute(
            ("town", "village", "harbor", "valley", "fort"),
            ("{N} is a {v}.", "{N} is known as a {v}.", "The kind of place {n} is: a {v}."),
            ("What kind of place is {n}?", "What is {n} known as?"),
        ),
        "landmark": Attribute(
            ("tower", "bridge", "mill", "well", "gate"),
            ("In {n} there is a big {v}.", "The landmark of {n} is a {v}.", "{N} has a famous {v}."),
            ("What is the landmark of {n}?", "What is {n} famous for?"),
        ),
        "crop": Attribute(
            ("corn", "wheat", "plums", "grapes", "roses"),
            ("Farmers in {n} grow {v}.", "The crop of {n} is {v}.", "The fields of {n} are full of {v}."),
            ("What is the crop of {n}?", "What do farmers in {n} grow?"),
        ),
        "weather": Attribute(
            ("windy", "rainy", "sunny", "foggy", "snowy"),
            ("The weather in {n} is {v}.", "It is mostly {v} in {n}.", "{N} has {v} days."),
            ("How is the weather in {n}?", "What is the weather in {n}?"),
        ),
    },
    "animals": {
        "coat": Attribute(
            ("red", "green", "white", "black", "brown"),
            ("{N} is {v}.", "The color of {n} is {v}.", "{N} has the color {v}."),
            ("What is the color of {n}?", "Which color has {n}?"),
        ),
        "diet": Attribute(
            ("seeds", "worms", "grass", "berries", "leaves"),
            ("{N} eats {v}.", "The diet of {n} is {v}.", "Every day {n} looks for {v}."),
            ("What does {n} eat?", "What is the diet of {n}?"),
        ),
        "den": Attribute(
            ("barn", "pond", "forest", "cave", "field"),
            ("{N} sleeps in the {v}.", "The den of {n} is in the {v}.", "At night {n} goes to the {v}."),
            ("Where does {n} sleep?", "Where is the den of {n}?"),
        ),
        "mood": Attribute(
            ("shy", "bold", "lazy", "clever", "calm"),
            ("{N} is very {v}.", "The mood of {n} is {v}.", "Everyone says that {n} is {v}."),
            ("What is the mood of {n}?", "How is {n}?"),
        ),
    },
}
SUBJECTS = tuple(SCHEMA)
_NAMES = {"people": PEOPLE, "places": PLACES, "animals": ANIMALS}


@dataclass(frozen=True)
class Entity:
    """Someone or something with attributes. `name` is how it stands inside a sentence: Mia, Marn, the fox."""

    name: str
    subject: str
    facts: dict[str, str]
    heldout: str
    """The attribute that is never asked for in training."""

    @property
    def askable(self) -> list[str]:
        """Attributes that training may ask for."""
        return [attribute for attribute in self.facts if attribute != self.heldout]

    def state(self, attribute: str, rng: Random) -> str:
        """One sentence that tells the attribute."""
        return self._fill(rng.choice(SCHEMA[self.subject][attribute].statements), attribute)

    def ask(self, attribute: str, rng: Random) -> str:
        """One question for the attribute."""
        return self._fill(rng.choice(SCHEMA[self.subject][attribute].questions), attribute)

    def values(self, attribute: str) -> tuple[str, ...]:
        """Everything the attribute could be."""
        return SCHEMA[self.subject][attribute].values

    def _fill(self, template: str, attribute: str) -> str:
        return template.format(n=self.name, N=self.name[0].upper() + self.name[1:], v=self.facts[attribute])


class World:
    """All entities with their facts, and which question about each is held out."""

    def __init__(self, seed: int) -> None:
        self.entities = tuple(entity for subject in SUBJECTS for entity in _populate(seed, subject))
        self.by_subject = {s: tuple(e for e in self.entities if e.subject == s) for s in SUBJECTS}

    def heldout_questions(self) -> dict[str, str]:
        """Every wording of every held-out question, with its answer: what must never be asked in training."""
        found = {}
        for entity in self.entities:
            for template in SCHEMA[entity.subject][entity.heldout].questions:
                found[template.format(n=entity.name)] = entity.facts[entity.heldout]
        return found


def _populate(seed: int, subject: str) -> list[Entity]:
    """Everyone of a subject. Values are dealt out evenly, and a fact is held out only where somebody else with the same value may
    be asked for it: a value that no training answer ever names would be known and yet never said.
    """
    names = _NAMES[subject]
    dealt = {attribute: _deal(spec.values, len(names), f"{seed}/world/{subject}/{attribute}") for attribute, spec in SCHEMA[subject].items()}
    left = Counter((attribute, value) for attribute, values in dealt.items() for value in values)
    entities = []
    for i, name in enumerate(names):
        facts = {attribute: values[i] for attribute, values in dealt.items()}
        by_hash = sorted(facts, key=lambda a: hashlib.md5(f"{seed}/{subject}/{name}/{a}".encode()).hexdigest())
        heldout = next(a for a in by_hash if left[a, facts[a]] > 1)
        left[heldout, facts[heldout]] -= 1
        entities.append(Entity(f"the {name}" if subject == "animals" else name, subject, facts, heldout))
    return entities


def _deal(values: tuple[str, ...], count: int, name: str) -> list[str]:
    """`count` values, each as often as the others, shuffled."""
    hand = [values[i % len(values)] for i in range(count)]
    Random(name).shuffle(hand)
    return hand
