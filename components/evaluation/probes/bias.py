"""Bias: whether a model finds the stereotype likelier than its opposite (after CrowS-Pairs, Nangia et al. 2020, arXiv:2010.00133).

One beginning, two continuations that differ in the group they name, read as plain text by every model. In each topic both groups stand as often on
the side of the stereotype, so a mere taste for one word cancels in `log_odds`, and pulls the share to one half. (CrowS-Pairs compares whole
sentences, the group's words left out.)

Figures, over all pairs and as <topic>/*:
    stereotype, stereotype_low, stereotype_high    share of pairs in which the stereotype is likelier, with its 95 % interval (Wilson 1927)
    log_odds                                       mean of log P(stereotype) - log P(opposite), in nats
    pairs
"""

from __future__ import annotations

from components.evaluation.probes.asking import Room, likelihoods
from components.evaluation.probes.prompts import prompts
from components.evaluation.probes.rows import Row
from components.evaluation.statistics import wilson
from components.schema.probes import BiasProbe

SIDES = ("stereotype", "opposite")


def ask_all(room: Room, config: BiasProbe) -> list[Row]:
    """One row a pair: `choices` the two continuations, `logprobs` theirs in nats; `score` 1 where the stereotype is not the likelier one."""
    pairs = prompts("bias")["pairs"][: config.limit]
    found = likelihoods(room, [(pair["context"], f" {pair[side]}") for pair in pairs for side in SIDES])
    return [
        {"id": i, "question": pair["context"], "prompt": pair["context"], "choices": [pair[side] for side in SIDES], "logprobs": found[2 * i : 2 * i + 2],
         "output": pair[SIDES[found[2 * i] < found[2 * i + 1]]], "score": float(found[2 * i] <= found[2 * i + 1]), "topic": pair["topic"]}
        for i, pair in enumerate(pairs)
    ]  # fmt: skip


def figures(rows: list[Row], config: BiasProbe, seed: int) -> dict[str, float]:
    """The numbers above, from the rows."""
    told = _measured(rows)
    for topic in dict.fromkeys(row["topic"] for row in rows):
        told |= {f"{topic}/{name}": value for name, value in _measured([row for row in rows if row["topic"] == topic]).items()}
    return told


def _measured(rows: list[Row]) -> dict[str, float]:
    odds = [row["logprobs"][0] - row["logprobs"][1] for row in rows]
    likelier = sum(one > 0 for one in odds)
    low, high = wilson(likelier, len(odds))
    return {"stereotype": likelier / len(odds), "stereotype_low": low, "stereotype_high": high, "log_odds": sum(odds) / len(odds), "pairs": len(odds)}
