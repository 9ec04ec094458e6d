"""The three mini benchmarks, in the schemas of GSM8K, MMLU and HumanEval, so that lm-eval's official tasks read them unchanged.

Items are drawn from the held-out side only; few-shot examples from the training side.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from components.data.curriculum import arithmetic, numbers, programs, prose, reading
from components.data.curriculum.world import SUBJECTS as FACT_SUBJECTS
from components.data.curriculum.world import World
from components.schema.config import BadInput

SUBJECTS = (*FACT_SUBJECTS, "arithmetic", "comparisons", "sequences", "reading")
FEWSHOT_ITEMS = 5
DRAWS_PER_ITEM = 50
CHAIN_SHARE = 0.85  # of mini_gsm8k
MMLU_DESCRIPTION = "The following are questions (with answers) about {subject}.\n\n"

Row = dict[str, Any]
Splits = dict[str, dict[str, list[Row]]]  # configuration -> split -> rows


def mini_gsm8k(world: World, seed: int, items: int) -> Splits:
    """Stories over held-out sums, most of them with two steps."""

    def draw(rng: Random, heldout: bool) -> Row:
        story = arithmetic.tell(arithmetic.draw_steps(rng, seed, heldout, chain=rng.random() < CHAIN_SHARE), rng)
        return {"question": story.text, "answer": story.solution}

    test = _distinct(lambda rng: draw(rng, True), f"{seed}/gsm8k/test", items)
    return {"main": {"train": _distinct(lambda rng: draw(rng, False), f"{seed}/gsm8k/train", 8 * FEWSHOT_ITEMS), "test": test}}


def mini_mmlu(world: World, seed: int, items: int) -> Splits:
    """Held-out questions with four options, spread evenly over the subjects."""
    shares = {subject: items // len(SUBJECTS) + (i < items % len(SUBJECTS)) for i, subject in enumerate(SUBJECTS)}
    return {subject: _subject(world, seed, subject, share) for subject, share in shares.items() if share}


def _subject(world: World, seed: int, subject: str, items: int) -> dict[str, list[Row]]:
    def draw(heldout: bool) -> Callable[[Random], Row]:
        return lambda rng: draw_item(rng, world, seed, subject, heldout)

    dev = _distinct(draw(False), f"{seed}/mmlu/{subject}/dev", FEWSHOT_ITEMS)
    return {"dev": dev, "test": _distinct(draw(True), f"{seed}/mmlu/{subject}/test", items)}


def mini_humaneval(world: World, seed: int, items: int) -> Splits:
    """Held-out functions, each once; at most a third of `items`."""
    rng = Random(f"{seed}/humaneval")
    pool = programs.pool(seed, heldout=True)
    drawn = [programs.write(family, constant, rng) for family, constant in rng.sample(pool, min(len(pool), max(1, items // 3)))]
    rows = [
        {"task_id": f"MiniHumanEval/{i}", "prompt": p.prompt, "canonical_solution": p.body + "\n", "test": p.test, "entry_point": p.name}
        for i, p in enumerate(drawn)
    ]
    return {"default": {"test": rows}}


MAKERS: dict[str, Callable[[World, int, int], Splits]] = {"mini_gsm8k": mini_gsm8k, "mini_mmlu": mini_mmlu, "mini_humaneval": mini_humaneval}


def draw_item(rng: Random, world: World, seed: int, subject: str, heldout: bool) -> Row:
    """One multiple-choice item of a subject, in MMLU's schema."""
    if subject == "arithmetic":
        (step,) = arithmetic.draw_steps(rng, seed, heldout, chain=False)
        question = f"What is {step.left} {step.operator} {step.right}?"
        answer, others = str(step.result), prose.near_numbers(step.result, rng)
    elif subject == "comparisons":
        a, b = numbers.draw_comparison(rng, seed, heldout)
        question, number = numbers.ask_comparison(a, b, rng)
        answer, other = str(number), str(a + b - number)
        others = [other, *(n for n in prose.near_numbers(number, rng) if n != other)][:3]
    elif subject == "sequences":
        question, number = numbers.ask_sequence(numbers.draw_sequence(rng, seed, heldout))
        answer, others = str(number), prose.near_numbers(number, rng)
    elif subject == "reading":
        passage = reading.draw(rng, seed, heldout)
        name, answer = rng.choice(passage.places)
        question, others = f"{passage.text} Where is {name}?", prose.other_rooms(passage, answer, rng)
    else:
        entity = rng.choice(world.by_subject[subject])
        attribute = entity.heldout if heldout else rng.choice(entity.askable)
        question, answer, others = entity.ask(attribute, rng), entity.facts[attribute], prose.distractors(entity, attribute, rng)
    options = prose.shuffled(answer, others, rng)
    return {"question": question, "subject": subject, "choices": options, "answer": options.index(answer)}


def mmlu_messages(item: Row) -> list[dict[str, str]]:
    """What lm-eval's mmlu_continuation sends for an item under a chat template: the description is the system message."""
    return [
        {"role": "system", "content": MMLU_DESCRIPTION.format(subject=item["subject"])},
        {"role": "user", "content": f"Question: {item['question']}\nAnswer:"},
    ]


def _distinct(draw: Callable[[Random], Row], name: str, items: int) -> list[Row]:
    """`items` different rows; other options count as another row, another order of the same options does not. Errors: BadInput."""
    found: dict[str, Row] = {}
    for i in range(DRAWS_PER_ITEM * items):
        row = draw(Random(f"{name}/{i}"))
        found.setdefault(row["question"] if "choices" not in row else f"{row['question']}{sorted(row['choices'])}", row)
        if len(found) == items:
            return list(found.values())
    raise BadInput(
        f"curriculum: benchmark_items asks for {items} different items of {name.split('/', 1)[1]}, and the little world has about {len(found)} held out: "
        "the benchmark would repeat itself. Lower curriculum.benchmark_items"
    )
