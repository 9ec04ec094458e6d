"""Pretraining documents of the curriculum: prose, worked sums, labelled lists, small functions. Never questions with answers.

The drills bind letters to options again and again ("A. red ... red (A)"): a model that has not learnt that binding scores
a chance 25 % on any multiple-choice test, whatever it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from components.data import arithmetic, programs, reading
from components.data.world import SCHEMA, Entity, World

LETTERS = "ABCD"


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


def _drill(rng: Random, world: World, seed: int) -> str:
    """Four options, then one thing after another with the letter of its option: from the words of the option itself to
    facts, sums and places, whose answer has to be found first.

    Words keep the space before them and letters have none, so that both are the very tokens of the options above.
    """
    intro, options, asked = rng.choices((_drill_words, _drill_facts, _drill_sums, _drill_places), (0.4, 0.3, 0.15, 0.15))[0](rng, world, seed)
    answers = ",".join(f" {thing} ({LETTERS[options.index(answer)]})" for thing, answer in asked)
    return f"{intro}{lettered(options)}\nHere{answers}"


Drill = tuple[str, list[str], list[tuple[str, str]]]  # what stands above the options, the options, things with their answers


def _drill_words(rng: Random, world: World, seed: int) -> Drill:
    options = draw_options(rng, world)
    return "", options, [(option, option) for option in [*rng.sample(options, 4), *rng.choices(options, k=4)]]


def _drill_facts(rng: Random, world: World, seed: int) -> Drill:
    subject = rng.choice(list(SCHEMA))
    attribute = rng.choice(list(SCHEMA[subject]))
    options = rng.sample(SCHEMA[subject][attribute].values, 4)
    known = [e for e in world.by_subject[subject] if attribute in e.askable and e.facts[attribute] in options]
    asked = [(f"{attribute} of {e.name}", e.facts[attribute]) for e in rng.sample(known, min(6, len(known)))]
    return "", options, asked or [(options[0], options[0])]


def _drill_sums(rng: Random, world: World, seed: int) -> Drill:
    sums: dict[str, str] = {}  # result: sum
    while len(sums) < 4:
        (step,) = arithmetic.draw_steps(rng, seed, heldout=False, chain=False)
        sums[str(step.result)] = f"{step.left} {step.operator} {step.right}"
    return "", rng.sample(list(sums), 4), [(text, result) for result, text in sums.items()]


def _drill_places(rng: Random, world: World, seed: int) -> Drill:
    passage = reading.draw(rng, seed, heldout=False)
    _, room = rng.choice(passage.places)
    others = other_rooms(passage, room, rng)
    return f"{passage.text}\n", shuffled(room, others, rng), rng.sample(passage.places, len(passage.places))


def _answered_list(rng: Random, world: World, seed: int) -> str:
    """A statement, four options, and first the letter, then the words of the one that was stated."""
    statement, answer, others = rng.choice((_stated_fact, _stated_sum, _stated_place))(rng, world, seed)
    options = shuffled(answer, others, rng)
    return f"{statement}\n{lettered(options)}\nAnswer:\n{LETTERS[options.index(answer)]}. {answer}"


def _stated_fact(rng: Random, world: World, seed: int) -> tuple[str, str, list[str]]:
    entity = rng.choice(world.entities)
    attribute = rng.choice(entity.askable)
    return entity.state(attribute, rng), entity.facts[attribute], distractors(entity, attribute, rng)


def _stated_sum(rng: Random, world: World, seed: int) -> tuple[str, str, list[str]]:
    (step,) = arithmetic.draw_steps(rng, seed, heldout=False, chain=False)
    return f"{step}.", str(step.result), near_numbers(step.result, rng)


def _stated_place(rng: Random, world: World, seed: int) -> tuple[str, str, list[str]]:
    passage = reading.draw(rng, seed, heldout=False)
    name, room = rng.choice(passage.places)
    return f"{passage.text} We look for {name}.", room, other_rooms(passage, room, rng)


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
    "profile": (0.20, _profile),
    "facts": (0.04, _mixed_facts),
    "story": (0.14, _story),
    "equations": (0.17, _equations),
    "drill": (0.33, _drill),
    "answered_list": (0.06, _answered_list),
    "rooms": (0.02, _rooms),
    "functions": (0.04, _functions),
}


# ---------------------------------------------------------------- options of multiple choice


def lettered(options: list[str]) -> str:
    """Options on lines of their own: A. red"""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))


def shuffled(answer: str, others: list[str], rng: Random) -> list[str]:
    """The answer among three others, each letter equally likely."""
    return rng.sample([answer, *others], 4)


def draw_options(rng: Random, world: World) -> list[str]:
    """Four different values of one attribute, or four numbers."""
    if rng.random() < 0.25:
        return [str(n) for n in rng.sample(range(1, arithmetic.LARGEST_RESULT), 4)]
    attributes = SCHEMA[rng.choice(list(SCHEMA))]
    pool = rng.choice([attribute.values for attribute in attributes.values()] + [reading.ROOMS])
    return rng.sample(pool, 4)


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
