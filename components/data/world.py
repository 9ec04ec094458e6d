"""The facts of a closed little world: twelve people, ten places, ten animals, four or five attributes each.

Who has which attribute follows from the seed. Every statement has several wordings and both orders (subject first, value
first), because a small model can answer a question about a fact only if it met the fact in varied words (Allen-Zhu and
Li 2023, arXiv:2309.14316).

Of each entity one attribute is held out: its fact is told in prose, but no training chat, pair or list ever asks for it.

    World(seed=0).entities[0].facts     # {"home": "Marn", "job": "baker", ...}
"""

from __future__ import annotations

import hashlib
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
            PLACES[:8],
            ("{N} lives in {v}.", "The home of {n} is {v}.", "{v} is the home of {n}."),
            ("Where does {n} live?", "What is the home of {n}?"),
        ),
        "job": Attribute(
            ("baker", "farmer", "sailor", "teacher", "painter", "doctor", "miller", "singer"),
            ("{N} is a {v}.", "{N} works as a {v}.", "The job of {n} is {v}."),
            ("What is the job of {n}?", "What does {n} work as?"),
        ),
        "pet": Attribute(
            ANIMALS[:8],
            ("{N} has a pet {v}.", "The pet of {n} is a {v}.", "A {v} is the pet of {n}."),
            ("What is the pet of {n}?", "Which pet does {n} have?"),
        ),
        "food": Attribute(
            ("bread", "soup", "rice", "cake", "fish", "beans", "cheese", "honey"),
            ("{N} likes to eat {v}.", "The favorite food of {n} is {v}.", "For lunch {n} eats {v}."),
            ("What is the favorite food of {n}?", "What does {n} like to eat?"),
        ),
        "color": Attribute(
            ("red", "blue", "green", "gold", "white", "black", "pink", "brown"),
            ("The favorite color of {n} is {v}.", "{N} likes the color {v}.", "{N} always wears {v}."),
            ("What is the favorite color of {n}?", "Which color does {n} like?"),
        ),
    },
    "places": {
        "kind": Attribute(
            ("town", "village", "harbor", "valley", "fort", "camp"),
            ("{N} is a {v}.", "{N} is known as a {v}.", "The kind of place {n} is: a {v}."),
            ("What kind of place is {n}?", "What is {n} known as?"),
        ),
        "landmark": Attribute(
            ("tower", "bridge", "mill", "well", "gate", "wall", "garden", "clock"),
            ("In {n} there is a big {v}.", "The landmark of {n} is a {v}.", "{N} has a famous {v}."),
            ("What is the landmark of {n}?", "What is {n} famous for?"),
        ),
        "crop": Attribute(
            ("apples", "pears", "corn", "wheat", "plums", "grapes", "carrots", "roses"),
            ("Farmers in {n} grow {v}.", "The crop of {n} is {v}.", "The fields of {n} are full of {v}."),
            ("What is the crop of {n}?", "What do farmers in {n} grow?"),
        ),
        "weather": Attribute(
            ("windy", "rainy", "sunny", "foggy", "snowy", "stormy"),
            ("The weather in {n} is {v}.", "It is mostly {v} in {n}.", "{N} has {v} days."),
            ("How is the weather in {n}?", "What is the weather in {n}?"),
        ),
    },
    "animals": {
        "coat": Attribute(
            ("red", "blue", "green", "gold", "white", "black", "pink", "brown"),
            ("{N} is {v}.", "The color of {n} is {v}.", "{N} has the color {v}."),
            ("What is the color of {n}?", "Which color has {n}?"),
        ),
        "diet": Attribute(
            ("seeds", "worms", "grass", "berries", "nuts", "leaves", "bugs", "corn"),
            ("{N} eats {v}.", "The diet of {n} is {v}.", "Every day {n} looks for {v}."),
            ("What does {n} eat?", "What is the diet of {n}?"),
        ),
        "den": Attribute(
            ("barn", "pond", "forest", "cave", "field", "garden", "roof", "river"),
            ("{N} sleeps in the {v}.", "The den of {n} is in the {v}.", "At night {n} goes to the {v}."),
            ("Where does {n} sleep?", "Where is the den of {n}?"),
        ),
        "mood": Attribute(
            ("shy", "bold", "lazy", "clever", "calm", "noisy"),
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
        self.entities = tuple(_entity(seed, subject, name) for subject in SUBJECTS for name in _NAMES[subject])
        self.by_subject = {s: tuple(e for e in self.entities if e.subject == s) for s in SUBJECTS}

    def heldout_questions(self) -> dict[str, str]:
        """Every wording of every held-out question, with its answer: what must never be asked in training."""
        found = {}
        for entity in self.entities:
            for template in SCHEMA[entity.subject][entity.heldout].questions:
                found[template.format(n=entity.name)] = entity.facts[entity.heldout]
        return found


def _entity(seed: int, subject: str, name: str) -> Entity:
    rng = Random(f"{seed}/world/{subject}/{name}")
    attributes = SCHEMA[subject]
    facts = {attribute: rng.choice(spec.values) for attribute, spec in attributes.items()}
    heldout = sorted(attributes, key=lambda a: hashlib.md5(f"{seed}/{subject}/{name}/{a}".encode()).hexdigest())[0]
    return Entity(f"the {name}" if subject == "animals" else name, subject, facts, heldout)
