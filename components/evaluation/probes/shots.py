"""In-context learning: what worked examples are worth to a model (Brown et al. 2020, arXiv:2005.14165).

The same items are asked behind 0, 1, 2, 5 worked examples, drawn by lm-eval's own sampler of the task from the evaluation's seed; an item's score is
the suite's first metric. A prompt that outgrows the model's context loses its beginning, which flattens the curve, so the share of such prompts
stands beside it.

Figures, by suite and number of worked examples:
    <suite>/<n>_shot/score, /stderr, /truncated    mean score of the items, its standard error, and the share of prompts that were cut
    <suite>/gain, /gain_low, /gain_high            most examples against fewest, paired by item, with the 95 % interval
    <suite>/items
"""

from __future__ import annotations

from statistics import fmean, stdev

from components.evaluation.probes.asking import Room, answered, ask, draw, examples_of, fresh
from components.evaluation.probes.rows import Row
from components.evaluation.statistics import paired_difference
from components.schema.probes import ShotsProbe


def ask_all(room: Room, config: ShotsProbe) -> list[Row]:
    """One row an item and number of worked examples (`shots`)."""
    asked = []
    for suite in config.suites or room.suites:
        loaded = room.suites[suite]
        most = min(map(examples_of, loaded["tasks"].values()))
        numbers = [shots for shots in config.shots if shots <= most]
        if left_out := [shots for shots in config.shots if shots > most]:
            room.note(f"shots: {suite} has {most} worked examples, so its curve ends before {left_out[0]}")
        if len(numbers) < 2:  # one point is no curve
            continue
        drawn = draw(loaded, config.items)
        for shots in numbers:
            tasks = fresh(loaded, room.seed)
            asked += [ask(room, suite, one._replace(task=tasks[one.name]), shots) for one in drawn]
    return answered(room, asked)


def figures(rows: list[Row], config: ShotsProbe, seed: int) -> dict[str, float]:
    """The numbers above, from the rows."""
    told: dict[str, float] = {}
    for suite in dict.fromkeys(row["suite"] for row in rows):
        curve = {
            shots: [row for row in rows if (row["suite"], row["shots"]) == (suite, shots)]
            for shots in sorted({row["shots"] for row in rows if row["suite"] == suite})
        }
        for shots, mine in curve.items():
            scores = [row["score"] for row in mine]
            told[f"{suite}/{shots}_shot/score"] = fmean(scores)
            told[f"{suite}/{shots}_shot/stderr"] = stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
            told[f"{suite}/{shots}_shot/truncated"] = fmean(row["truncated"] for row in mine)
        fewest, most = ([row["score"] for row in curve[shots]] for shots in (min(curve), max(curve)))
        gain = paired_difference(most, fewest, seed)
        told |= {f"{suite}/gain": gain.difference, f"{suite}/items": len(fewest)}
        told |= {f"{suite}/gain_low": max(-1.0, gain.low), f"{suite}/gain_high": min(1.0, gain.high)}
    return told
