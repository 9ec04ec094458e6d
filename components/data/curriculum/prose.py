"""Pretraining documents of the curriculum: prose, worked sums, small functions. Never questions with answers."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from components.data.curriculum import arithmetic, numbers, programs, reading
from components.data.curriculum.world import Entity, World


def draw(rng: Random, world: World, seed: int) -> tuple[str, str]:
    """One random document: its kind and its text."""
    kinds, weights = zip(*((kind, weight) for kind, (weight, _) in WRITERS.items()), strict=True)
    kind = rng.choices(kinds, weights)[0]
    return kind, WRITERS[kind][1](rng, world, seed)


def _profile(rng: Random, world: World, seed: int) -> str:
    """Everything about one entity, in any order."""
    entity = rng.choice(world.entities)
    attributes = rng.sample(list(entity.facts), len(entity.facts))
    return " ".join(entity.state(attribute, rng) for attribute in attributes)


def _mixed_facts(rng: Random, world: World, seed: int) -> str:
    """Single facts about several entities, each told twice: first one way, then the other."""
    told = []
    for entity in rng.sample(world.entities, 3):
        attribute = rng.choice(list(entity.facts))
        told += [entity.state(attribute, rng), entity.state(attribute, rng)]
    return " ".join(told)


def _story(rng: Random, world: World, seed: int) -> str:
    """A story with its sum worked out."""
    story = arithmetic.tell(arithmetic.draw_steps(rng, seed, heldout=False), rng)
    return " ".join([story.events, *(f"{step} {story.objects}." for step in story.steps)])


def _equations(rng: Random, world: World, seed: int) -> str:
    """A column of sums: unrelated ones, or one sum with its first number moved by ones or tens, so that columns and carries show."""
    if rng.random() < 0.5:
        steps = [step for _ in range(8) for step in arithmetic.draw_steps(rng, seed, heldout=False, chain=False)]
    else:
        steps = arithmetic.draw_series(rng, seed)
    return "\n".join(str(step) for step in steps)


def _number_line(rng: Random, world: World, seed: int) -> str:
    """Comparisons told from both sides, and sequences."""
    lines = []
    for _ in range(3):
        a, b = sorted(numbers.draw_comparison(rng, seed, heldout=False))
        lines += [f"{b} is larger than {a}. {a} is smaller than {b}.", ", ".join(map(str, numbers.draw_sequence(rng, seed, heldout=False)))]
    return "\n".join(lines)


def _rooms(rng: Random, world: World, seed: int) -> str:
    """A passage, then each of its statements turned round."""
    passage = reading.draw(rng, seed, heldout=False)
    turned = [f"In the {room} is {name}." for name, room in passage.places]
    return f"{passage.text} " + " ".join(rng.sample(turned, len(turned)))


def _functions(rng: Random, world: World, seed: int) -> str:
    """Two or three functions, each with its docstring."""
    drawn = [programs.write(f, k, rng) for f, k in rng.sample(programs.pool(seed, heldout=False), rng.randint(2, 3))]
    return "\n\n\n".join(program.prompt + program.body for program in drawn)


Writer = Callable[[Random, World, int], str]
WRITERS: dict[str, tuple[float, Writer]] = {  # kind: share, writer
    "profile": (0.24, _profile),
    "facts": (0.08, _mixed_facts),
    "story": (0.22, _story),
    "equations": (0.22, _equations),
    "number_line": (0.08, _number_line),
    "rooms": (0.10, _rooms),
    "functions": (0.06, _functions),
}


# ---------------------------------------------------------------- options of multiple choice


def shuffled(answer: str, others: list[str], rng: Random) -> list[str]:
    """The answer among three others, in any order."""
    return rng.sample([answer, *others], 4)


def distractors(entity: Entity, attribute: str, rng: Random) -> list[str]:
    """Three wrong values for a fact."""
    return rng.sample([v for v in entity.values(attribute) if v != entity.facts[attribute]], 3)


def near_numbers(number: int, rng: Random) -> list[str]:
    """Three wrong results close to the right one."""
    return [str(n) for n in rng.sample([n for n in range(max(0, number - 6), number + 7) if n != number], 3)]


def other_rooms(passage: reading.Passage, room: str, rng: Random) -> list[str]:
    """Three wrong rooms, those of the other people in the passage first."""
    named = [r for _, r in passage.places if r != room]
    rest = rng.sample([r for r in reading.ROOMS if r != room and r not in named], 3 - len(named))
    return named + rest
