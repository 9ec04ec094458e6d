"""Robustness: multiple-choice items asked again with something changed that should not matter (changes.py).

Every change is compared with the unchanged prompt on the same items and the same worked examples; an answer is right where the likeliest choice is
(lm-eval's acc). After Zheng et al. 2024, arXiv:2309.03882 (order of options), and Perez and Ribeiro 2022, arXiv:2211.09527 (instructions in what a
model reads).

Figures, by suite and change:
    <suite>/<change>/clean, /score            accuracy as it is, and changed; of option_order the mean over all rotations
    <suite>/<change>/drop, /drop_low, /drop_high    clean - score, with its paired 95 % interval
    <suite>/<change>/flipped                  share of items whose answer changed; of option_order: that are not answered alike in every rotation
    <suite>/<change>/items, /truncated        items that could be changed, and the share of all prompts that outgrew the model's context
    <suite>/option_order/slot_bias            how much likelier its favourite place is chosen than chance: 0 = none
    <suite>/injection/obeyed                  share of items that now get the wrong answer they were told to give, of those that did not get it before
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from components.evaluation.probes.asking import (
    Asked,
    Drawn,
    Room,
    answered,
    ask,
    best,
    draw,
    examples_of,
    fresh,
    golds,
    is_multiple_choice,
    shots_of,
)
from components.evaluation.probes.changes import Whispering, in_order, in_question, rewording, rotations, typos
from components.evaluation.probes.rows import Row
from components.evaluation.statistics import paired_difference
from components.schema.probes import RobustnessProbe


def ask_all(room: Room, config: RobustnessProbe) -> list[Row]:
    """One row an item, change and way of asking it.

    `way` 0 is the unchanged one; `choice` is the option that was chosen, by its number in the unchanged document.
    """
    asked: list[Asked] = []
    for suite in config.suites or [name for name, loaded in room.suites.items() if is_multiple_choice(loaded)]:
        for change in config.changes:
            found = CHANGES[change](room, suite, config)
            asked += found
            if not found:
                room.note(f"robustness: {suite} cannot be asked with {change} ({LACKS[change]}), so that is not measured")
    return [_judged(row) for row in answered(room, asked)]


def _judged(row: Row) -> Row:
    """The choice, the score and the target in terms of the unchanged document."""
    order, right = row.pop("order"), row.pop("golds")
    choice = order[best(row["logprobs"])]
    target = row["choices"][order.index(right[0])] if right else ""
    return {**row, "choice": choice, "score": float(choice in right), "target": target}


def figures(rows: list[Row], config: RobustnessProbe, seed: int) -> dict[str, float]:
    """The numbers above, from the rows."""
    told: dict[str, float] = {}
    for suite, change in dict.fromkeys((row["suite"], row["change"]) for row in rows):
        mine = [row for row in rows if (row["suite"], row["change"]) == (suite, change)]
        told |= {f"{suite}/{change}/{name}": value for name, value in _compared(mine, change, seed).items()}
    return told


def _compared(rows: list[Row], change: str, seed: int) -> dict[str, float]:
    items: dict[tuple[str, int], list[Row]] = {}  # an item's rows, by way
    for row in sorted(rows, key=lambda row: row["way"]):
        items.setdefault((row["task"], row["id"]), []).append(row)
    clean = [ways[0]["score"] for ways in items.values()]
    changed = [_mean([row["score"] for row in ways if row["way"] or change == "option_order"]) for ways in items.values()]
    drop = paired_difference(clean, changed, seed)
    told = {
        "clean": _mean(clean), "score": _mean(changed), "drop": drop.difference, "drop_low": max(-1.0, drop.low), "drop_high": min(1.0, drop.high),
        "flipped": _mean([any(row["choice"] != ways[0]["choice"] for row in ways) for ways in items.values()]), "items": len(items),
        "truncated": _mean([row["truncated"] for row in rows]),
    }  # fmt: skip
    if change == "option_order":
        told["slot_bias"] = _slot_bias(rows)
    if change == "injection":
        told["obeyed"] = _mean([ways[1]["choice"] == ways[1]["told"] for ways in items.values() if ways[0]["choice"] != ways[0]["told"]])
    return told


def _slot_bias(rows: list[Row]) -> float:
    """Over all rotations every option stands everywhere equally often, so a model that has no favourite place chooses each of n places in 1 of n."""
    excess = []
    for count in sorted({len(row["logprobs"]) for row in rows}):
        slots = Counter(best(row["logprobs"]) for row in rows if len(row["logprobs"]) == count)
        excess.append((max(slots.values()) / slots.total() - 1 / count, slots.total()))
    return sum(one * weight for one, weight in excess) / sum(weight for _, weight in excess)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# ---------------------------------------------------------------- what is changed


def _typos(room: Room, suite: str, config: RobustnessProbe) -> list[Asked]:
    return _in_other_words(room, suite, config, "typos", lambda text: typos(text, config.typo_rate, room.seed))


def _rewording(room: Room, suite: str, config: RobustnessProbe) -> list[Asked]:
    return _in_other_words(room, suite, config, "rewording", rewording)


def _in_other_words(room: Room, suite: str, config: RobustnessProbe, change: str, words: Callable[[str], str]) -> list[Asked]:
    pairs = [(drawn, in_question(drawn.task, drawn.doc, words)) for drawn in draw(room.suites[suite], config.items)]
    pairs = [(drawn, changed) for drawn, changed in pairs if changed]
    asked = []
    for way in (0, 1):
        tasks = fresh(room.suites[suite], room.seed)  # the same worked examples both times
        asked += [_ask(room, suite, tasks, drawn, changed if way else None, change=change, way=way) for drawn, changed in pairs]
    return asked


def _option_order(room: Room, suite: str, config: RobustnessProbe) -> list[Asked]:
    orders = [(drawn, rotations(len(drawn.task.doc_to_choice(drawn.doc)))) for drawn in draw(room.suites[suite], config.items)]
    orders = [(drawn, turns) for drawn, turns in orders if len(turns) > 1 and in_order(drawn.task, drawn.doc, turns[1])]
    asked = []
    for way in range(max((len(turns) for _, turns in orders), default=0)):
        tasks = fresh(room.suites[suite], room.seed)
        for drawn, turns in orders:
            if way < len(turns):
                asked.append(_ask(room, suite, tasks, drawn, in_order(drawn.task, drawn.doc, turns[way]), change="option_order", way=way, order=turns[way]))
    return asked


def _injection(room: Room, suite: str, config: RobustnessProbe) -> list[Asked]:
    """With one worked example at least, since it is there that the instruction stands."""
    items = [(drawn, _wrong(drawn, room.seed)) for drawn in draw(room.suites[suite], config.items)]
    enough = {name for name, task in room.suites[suite]["tasks"].items() if examples_of(task) >= max(1, shots_of(task))}
    items = [(drawn, told) for drawn, told in items if told is not None and drawn.name in enough]
    asked: list[list[Asked]] = [[], []]
    for way in (0, 1):
        tasks = fresh(room.suites[suite], room.seed)
        for drawn, told in items:
            task, shots = tasks[drawn.name], max(1, shots_of(drawn.task))
            if way:
                task.sampler = Whispering(task, drawn.task.doc_to_choice(drawn.doc)[told], getattr(task.sampler, "sampler", task.sampler))
            asked[way].append(_ask(room, suite, tasks, drawn, None, shots, change="injection", way=way, told=told))
    heard = [i for i, pair in enumerate(zip(*asked, strict=True)) if pair[0].requests[0].args[0] != pair[1].requests[0].args[0]]
    return [asked[way][i] for way in (0, 1) for i in heard]


def _wrong(drawn: Drawn, seed: int) -> int | None:
    """A wrong option, drawn by item; None where there is none."""
    right = golds(drawn.task, drawn.doc)
    wrong = [i for i in range(len(drawn.task.doc_to_choice(drawn.doc))) if i not in right]
    return random.Random(f"{seed} {drawn.name} {drawn.id}").choice(wrong) if wrong and right else None


def _ask(room: Room, suite: str, tasks: Mapping[str, Any], drawn: Drawn, doc: dict[str, Any] | None, shots: int | None = None, **more: Any) -> Asked:
    """An item under one of the fresh tasks."""
    order = more.pop("order", None) or list(range(len(drawn.task.doc_to_choice(drawn.doc))))
    shots = shots_of(drawn.task) if shots is None else shots
    return ask(room, suite, drawn._replace(task=tasks[drawn.name]), shots, doc, order=order, golds=golds(drawn.task, drawn.doc), **more)


CHANGES = {"typos": _typos, "rewording": _rewording, "option_order": _option_order, "injection": _injection}
LACKS = {
    "typos": "no field of its documents is the question",
    "rewording": "no field of its documents is the question, or no rule fits one",
    "option_order": "its prompts do not show the options",
    "injection": "it has no worked examples, or no field of them is the question",
}
