"""Is the reward still worth believing? What a run of reinforcement learning shows when it pleases its reward and nobody else.

One reading an iteration: reward, KL, entropy, length, repetition, and what a judge says that training does not see (a reward model of other pairs).
Past some distance the reward goes on rising while what it stands for falls (Gao et al. 2022, arXiv:2210.10760); length is the commonest way there
(Singhal et al. 2023, arXiv:2310.03716). `suspicions` compares the last few readings with the first few, and says in a sentence what a person should
look at. It ends nothing by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, variance

import torch
from torch import Tensor

Reading = dict[str, float]

WINDOW = 5  # readings at either end
SIGMAS = 3.0  # a change is one when it is so many standard errors
LONGER, FOLLOWS, REPEATED, GRAMS = 1.25, 0.5, 0.1, 4


def suspicions(readings: Sequence[Reading]) -> dict[str, str]:
    """What speaks against the reward by now: kind -> sentence; empty with fewer than two windows of readings."""
    if len(readings) < 2 * WINDOW:
        return {}
    found = {}
    reward = _change(readings, "reward")
    if "judge" in readings[0] and reward > 0 > (judge := _change(readings, "judge")):
        best = max(readings, key=lambda reading: reading["judge"])
        found["judge"] = (
            f"the reward rose by {reward:.2f} while the judge, which training does not see, fell by {-judge:.2f}: the policy pleases its reward alone. "
            f"The judge was highest in iteration {best['iteration']:.0f}, at a KL of {best['kl']:.2f}; raise kl_coef, or set bands.kl_max near that"
        )
    before, after = _ends(readings, "length")
    follows = fmean(reading["reward_by_length"] for reading in readings[-WINDOW:])
    if reward > 0 and _change(readings, "length") and ((after > LONGER * before and follows > FOLLOWS) or (LONGER * after < before and follows < -FOLLOWS)):
        found["length"] = (
            f"answers went from {before:.0f} to {after:.0f} tokens and the reward follows length (correlation {follows:+.2f}): "
            "it may be length that is learnt. "
            "Look at samples.jsonl; add a reward of kind length, or balance the reward model's pairs"
        )
    before, after = _ends(readings, "repetition")
    if _change(readings, "repetition") > 0 and after > before + REPEATED:
        found["repetition"] = (
            f"{after:.0%} of what answers say repeats itself, {before:.0%} at the start: the policy degenerates. Raise kl_coef or lower learning_rate"
        )
    if (
        _change(readings, "kl") > 0
        and (late := readings[len(readings) // 2 :])
        and len(late) >= 2 * WINDOW
        and _change(late, "kl") > 0 > _change(late, "reward")
    ):
        found["kl"] = (
            f"the policy still moves away (KL {readings[-1]['kl']:.2f} nats an answer) and the reward falls: what it gained is being lost. "
            "Lower learning_rate or iterations, or raise kl_coef"
        )
    return found


def _ends(readings: Sequence[Reading], name: str) -> tuple[float, float]:
    """Means of the first and of the last readings."""
    return fmean(reading[name] for reading in readings[:WINDOW]), fmean(reading[name] for reading in readings[-WINDOW:])


def _change(readings: Sequence[Reading], name: str) -> float:
    """From the first readings to the last; 0 where it is within noise."""
    first, last = ([reading[name] for reading in part] for part in (readings[:WINDOW], readings[-WINDOW:]))
    change = fmean(last) - fmean(first)
    return change if abs(change) > SIGMAS * ((variance(first) + variance(last)) / WINDOW) ** 0.5 else 0.0


def repetition(answers: Sequence[Sequence[int]], n: int = GRAMS) -> Tensor:
    """Share of each answer's n-grams that it has said before: (B,) (seq-rep-n, Welleck et al. 2020, arXiv:1908.04319); 0 for answers shorter than n."""
    shares = []
    for answer in answers:
        grams = [tuple(answer[i : i + n]) for i in range(len(answer) - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return torch.tensor(shares)


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's, of two (B,); 0 where one of them does not vary."""
    x, y = (one.double() - one.double().mean() for one in (x, y))
    size = (x.norm() * y.norm()).item()
    return (x @ y).item() / size if size > 1e-12 else 0.0
