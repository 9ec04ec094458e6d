"""The curriculum: a closed little world, generated from a seed, that a two-million-parameter model can learn in minutes.

It gives documents, chats, preference pairs and three mini benchmarks. **Nothing that the benchmarks ask occurs in training**,
in whatever words: `Guard(seed).reason(text)` reads any text and says which kind of held-out item is in it, if any; every
generated text passes through it, and so does every text from a source beside the curriculum. What counts as the same item
stands at the top of arithmetic.py, numbers.py, programs.py, reading.py, world.py.
Facts are the one thing told but not asked: a held-out question ("What is the job of Mia?") never occurs in a chat or a pair,
while the fact itself is in the prose, since without it the question would be a lottery.

Item i depends on the seed and i alone: asking for more items leaves the first ones as they were.

    list(documents(CurriculumConfig(documents=10)))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from components.data.curriculum import arithmetic, dialogues, exams, numbers, programs, prose, reading, safety
from components.data.curriculum.world import World
from components.schema.data import CurriculumConfig

Item = dict[str, Any]


def documents(config: CurriculumConfig) -> Iterator[tuple[str, str]]:
    """Texts for pretraining with their source label."""

    def draw(rng: Random, world: World, seed: int) -> Item:
        kind, text = prose.draw(rng, world, seed)
        return {"text": text, "source": f"curriculum/{kind}"}

    for item in _clean_items("documents", config.documents, config.seed, draw):
        yield item["text"], item["source"]


def chats(config: CurriculumConfig) -> Iterator[Item]:
    """Chats: {"messages", "kind"}; those about code have `tests`, a program's end that fails where the answer is wrong."""
    return _clean_items("chats", config.chats, config.seed, dialogues.draw_chat)


def preferences(config: CurriculumConfig) -> Iterator[Item]:
    """Preference pairs: {"prompt", "chosen", "rejected", "kind"}; those about safety say `safer` and `safe` too."""
    yield from _clean_items("preferences", config.preferences, config.seed, dialogues.draw_pair)
    yield from _clean_items("safety", config.safety, config.seed, safety.draw_pair)


def benchmark(name: str, config: CurriculumConfig) -> exams.Splits:
    """One mini benchmark: configuration -> split -> rows."""
    return exams.MAKERS[name](World(config.seed), config.seed, config.benchmark_items)


def _clean_items(what: str, count: int, seed: int, draw: Callable[[Random, World, int], Item]) -> Iterator[Item]:
    """`count` items, each drawn again until nothing held out is in it."""
    world, guard = World(seed), Guard(seed)
    for i in range(count):
        rng = Random(f"{seed}/{what}/{i}")
        item = draw(rng, world, seed)
        while guard.reason(as_text(item)):
            item = draw(rng, world, seed)
        yield item


def as_text(item: Item) -> str:
    """Everything that stands in a document, chat or pair, as one text."""
    if "text" in item:
        return item["text"]
    messages = item.get("messages") or item["prompt"]
    return "\n".join([*(m["content"] for m in messages), item.get("chosen", ""), item.get("rejected", "")])


class Guard:
    """Reads any text and says which held-out item is in it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.questions = World(seed).heldout_questions()
        functions = (programs.write(family, constant, Random(0)) for family, constant in programs.pool(seed, heldout=True))
        self.bodies = {body for function in functions for body in programs.bodies_in(function.prompt + function.body)}

    def reason(self, text: str) -> str | None:
        """None, or what kind of held-out item the text contains."""
        if any(arithmetic.is_heldout(key, self.seed) for key in arithmetic.keys_in(text)):
            return "contains_heldout_sum"
        if any(numbers.is_heldout(key, self.seed) for key in numbers.keys_in(text)):
            return "contains_heldout_numbers"
        if " is in the " in text and (key := reading.key_in(text)) and len(key) > 1 and reading.is_heldout(key, self.seed):
            return "contains_heldout_passage"
        if "?" in text and any(question in text for question in self.questions):
            return "contains_heldout_question"
        if "def " in text and programs.bodies_in(text) & self.bodies:
            return "contains_heldout_function"
        return None
