"""The mixture: which share of training each domain has, phase by phase, and how far the data reaches.

    mix.json   phases               [{"until": share of the steps, "probabilities": {domain: p, ...}}, ...]; each sums to 1
               max_epochs           no domain is gone through more often
               domains              {domain: tokens, share of the whole training, and up to how many training tokens that share holds}
               holds_up_to_tokens   length of training up to which no domain meets the cap

How long training is, a recipe's pretrain section says, which the data do not know. So the cap is applied where sequences are
drawn; this file says when that will begin. A domain without weights in a phase is not drawn in it; a phase without any
weights takes every domain by its tokens, which repeats all of them equally often.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.schema.config import BadInput
from components.schema.data import DataConfig, MixConfig, Mixture


def run(config: DataConfig, folder: Path) -> None:
    """Resolve the recipe's weights against the tokens beside `folder`; write mix.json. Errors: BadInput."""
    report = json.loads((folder.parent / "tokens" / "tokens.json").read_text(encoding="utf-8"))
    tokens = {name: counts["train_tokens"] for name, counts in report["domains"].items() if counts["train_tokens"]}
    (folder / "mix.json").write_text(json.dumps(resolve(config.mix, tokens), indent=2) + "\n", encoding="utf-8")


def resolve(config: MixConfig, tokens: dict[str, int]) -> dict[str, Any]:
    """mix.json's content, from the training tokens of each domain. Errors: BadInput where a weighted domain has none."""
    phases = [{"until": phase.until, "probabilities": _probabilities(phase, tokens)} for phase in config.phases]
    starts = [0.0, *(phase.until for phase in config.phases)]
    shares = {name: sum((phase["until"] - start) * phase["probabilities"][name] for start, phase in zip(starts, phases, strict=False)) for name in tokens}
    holds = {name: int(config.max_epochs * tokens[name] / share) if share else None for name, share in shares.items()}
    return {
        "max_epochs": config.max_epochs,
        "holds_up_to_tokens": min(total for total in holds.values() if total is not None),
        "phases": phases,
        "domains": {name: {"tokens": tokens[name], "share": shares[name], "holds_up_to_tokens": holds[name]} for name in sorted(tokens)},
    }


def _probabilities(phase: Mixture, tokens: dict[str, int]) -> dict[str, float]:
    """Every domain's probability in a phase, in the order of the names."""
    weights = {name: weight for name, weight in (phase.weights or tokens).items() if weight}
    if missing := sorted(weights.keys() - tokens.keys()):
        raise BadInput(
            f"mix: weights are given to {missing}, of which no training document is left: that share could not be drawn. "
            f"See the counts of what was dropped, or take them out of data.mix.phases. There are tokens of: {sorted(tokens)}"
        )
    total = sum(weights.values())
    return {name: weights.get(name, 0) / total for name in sorted(tokens)}
