"""How far the prompts that are served have moved from those a model was trained on.

    profile = profile_of_prompts(ids)             # once for a model: components/serving/reference.py
    drift = Drift(profile)
    drift.add(token_ids)                          # at each request
    drift.measures()                              # {"jensen_shannon": 0.21, "jensen_shannon_limit": 0.05, ...}

A window of the last 512 prompts is compared with the training prompts, by tokens alone; no text is kept:

| measure | what it is | drift where |
|---|---|---|
| jensen_shannon | divergence of the two token distributions, in bits: 0 = the same, 1 = no token in common (Lin 1991) | above its limit |
| unseen_share | share of tokens that no training prompt holds | above its limit |
| rare_share | share of tokens that are among training's rarest, which together are 1 % of it | above its limit |
| length_p50, length_p95 | tokens of a middling and of a long prompt | outside `_least` to `_most` |

No window is ever exactly like training, and a small one less so. So each measure has a band of its own for each size of window: a fifth of the different
training prompts is held back when the profile is made, windows are drawn from it again and again, and the band is what 99 of 100 of them keep to. `outside` counts the measures
that left theirs. A single look outside means little (five measures at 1 % each); an alert waits for it to last and to be clear (infra/prometheus/rules).
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence

import numpy as np

from components.schema.config import BadInput, Config

WINDOW = 512  # prompts
SIZES = (16, 32, 64, 128, 256, WINDOW)  # of windows for which bands are drawn
DRAWS = 300  # windows for each size
KEPT = 0.99  # share of training's own windows inside a band
HELD_BACK = 5  # one distinct prompt in so many is kept apart, wherever it stands, to draw windows from
FEWEST = 100  # different prompts, below which a profile would say nothing
RARE = 0.01  # share of all tokens that the rarest ones make up
ONE_SIDED = ("jensen_shannon", "unseen_share", "rare_share")
QUANTILES = {"length_p50": 0.50, "length_p95": 0.95}


class Profile(Config):
    """What the prompts of training are like, and how unlike it their own windows are."""

    prompts: int
    """Prompts it was counted from."""
    tokens: tuple[int, ...]
    """Ids of the tokens seen, the most frequent first."""
    counts: tuple[int, ...]
    """How often each was seen."""
    bands: dict[int, dict[str, tuple[float, float]]] = {}
    """By size of window and measure: between what 99 of 100 windows of training's own prompts lie."""


class Drift:
    """A sliding window of prompts against a profile. Safe to be added to and read from different threads."""

    def __init__(self, profile: Profile, window: int = WINDOW) -> None:
        self.profile, self.window = profile, window
        self._reference = _Reference(profile)
        self._prompts: deque[Counter[int]] = deque()
        self._seen: Counter[int] = Counter()
        self._lock = threading.Lock()

    def add(self, token_ids: Iterable[int]) -> None:
        """A prompt that was served; the oldest one leaves where the window is full."""
        counted = Counter(token_ids)
        with self._lock:
            self._prompts.append(counted)
            self._seen.update(counted)
            if len(self._prompts) > self.window:
                self._forget(self._prompts.popleft())

    def _forget(self, counted: Counter[int]) -> None:
        """In place: a subtraction of counters would look at every token of the window."""
        for token, count in counted.items():
            self._seen[token] -= count
            if not self._seen[token]:
                del self._seen[token]

    def measures(self) -> dict[str, float]:
        """`window` (prompts in it) alone until there are 16 of them; then every measure with its limits."""
        with self._lock:
            size, seen = len(self._prompts), dict(self._seen)
            lengths = [counted.total() for counted in self._prompts]
        band = self.profile.bands.get(max((n for n in self.profile.bands if n <= size), default=0))
        if band is None or not seen:
            return {"window": float(size)}
        measured = self._reference.measure(np.fromiter(seen, np.int64), np.fromiter(seen.values(), np.int64), lengths)
        limits = {f"{name}_limit": band[name][1] for name in ONE_SIDED}
        limits |= {f"{name}_{side}": bound for name in QUANTILES for side, bound in zip(("least", "most"), band[name], strict=True)}
        outside = sum(not low <= measured[name] <= high for name, (low, high) in band.items())
        return {"window": float(size), **measured, **limits, "outside": float(outside)}


class _Reference:
    """A profile laid out for looking tokens up."""

    def __init__(self, profile: Profile) -> None:
        self._ids = np.array(profile.tokens, np.int64)
        share = np.array(profile.counts, np.float64)
        self._share = share / share.sum()
        self._rare = np.cumsum(self._share[::-1])[::-1] <= RARE  # of the frequent ones first: the tail that holds 1 %
        order = np.argsort(self._ids)
        self._ids, self._share, self._rare = self._ids[order], self._share[order], self._rare[order]

    def measure(self, ids: np.ndarray, counts: np.ndarray, lengths: Sequence[int]) -> dict[str, float]:
        """What distinct `ids`, seen `counts` times in prompts of these lengths, measure."""
        place = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        known = self._ids[place] == ids
        here = counts / counts.sum()
        there = np.where(known, self._share[place], 0.0)
        quantiles = np.quantile(lengths, list(QUANTILES.values()))
        return {
            "jensen_shannon": _divergence(here, there),
            "unseen_share": float(here[~known].sum()),
            "rare_share": float(here[known & self._rare[place]].sum()),
            **{name: float(value) for name, value in zip(QUANTILES, quantiles, strict=True)},
        }


def profile_of_prompts(prompts: Sequence[Sequence[int]], seed: int = 0) -> Profile:
    """Count training's prompts (token ids, as the model was given them) and draw the bands. Errors: BadInput for fewer than 100 different ones."""
    distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    if len(distinct) < FEWEST:
        raise BadInput(f"drift: {len(distinct)} different training prompts are fewer than {FEWEST}, so chance could not be told from change. Train on more prompts, or go without")
    generator = np.random.default_rng(seed)
    apart = {distinct[place] for place in generator.permutation(len(distinct))[: max(len(distinct) // HELD_BACK, 1)]}
    held_back = [np.asarray(prompt, np.int64) for prompt in prompts if tuple(prompt) in apart]
    profile = _counted([np.asarray(prompt, np.int64) for prompt in prompts if tuple(prompt) not in apart])
    reference = _Reference(profile)
    bands = {size: _band(reference, held_back, size, generator) for size in SIZES}
    return profile.model_copy(update={"bands": bands})


def _counted(prompts: list[np.ndarray]) -> Profile:
    ids, counts = np.unique(np.concatenate(prompts), return_counts=True)
    order = np.lexsort((ids, -counts))
    return Profile(prompts=len(prompts), tokens=tuple(ids[order].tolist()), counts=tuple(counts[order].tolist()))


def _band(reference: _Reference, prompts: list[np.ndarray], size: int, generator: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Where windows of so many of these prompts, drawn with replacement, lie."""
    found: dict[str, list[float]] = {}
    for _ in range(DRAWS):
        window = [prompts[place] for place in generator.integers(len(prompts), size=size)]
        ids, counts = np.unique(np.concatenate(window), return_counts=True)
        for name, value in reference.measure(ids, counts, [len(prompt) for prompt in window]).items():
            found.setdefault(name, []).append(value)
    one = {name: (0.0, float(np.quantile(found[name], KEPT))) for name in ONE_SIDED}
    two = {name: tuple(np.quantile(found[name], [(1 - KEPT) / 2, (1 + KEPT) / 2]).tolist()) for name in QUANTILES}
    return {**one, **two}


def _divergence(here: np.ndarray, there: np.ndarray) -> float:
    """Jensen-Shannon, in bits. `here` and `there` are shares of the tokens that are here; what is only there adds half its share."""
    middle = (here + there) / 2
    of_here = float((here * np.log2(here / middle)).sum())
    shared = there > 0
    of_there = float((there[shared] * np.log2(there[shared] / middle[shared])).sum()) + (1.0 - float(there.sum()))
    return min(max((of_here + of_there) / 2, 0.0), 1.0)
