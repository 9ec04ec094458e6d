"""Which tokens a step of pretraining sees: a pure function of (seed, step), whatever ran before and on however many processes.

The stream of a training is a row of positions, batch_size of them for each step, and two rules say what stands at each:

1. **Domain.** In each phase of the mixture a domain gets its share of the phase's positions, spread so evenly that after any number
   of them it is within one of its share (Tijdeman 1980, "The chairman assignment problem"). No luck is in it.
2. **Sequence.** The k-th visit to a domain goes through the domain's sequences pass by pass, each pass in an order of its own,
   from (seed, pass): nothing is seen twice before all was seen once.

Where a domain's share would repeat it more than `max_epochs` times, it gets what it has, spread over the phases as its weights
are, and the other domains of a phase give the rest in proportion.

Documents are joined by the token that ends them, and a sequence may read across; each shard is cut for itself into
sequences of `length` + 1 tokens, of which neighbours share one (input and shifted target).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from components.schema.config import BadInput

BLOCK = 4096  # positions between two stored counts of visits
FITTING_ROUNDS = 5_000
FITTED = 1 + 1e-9


@dataclass(frozen=True)
class Mix:
    """mix.json: what share of training each domain has."""

    domains: tuple[str, ...]
    until: tuple[float, ...]
    """Where each phase ends, as a share of the steps; the last is 1."""
    probabilities: np.ndarray
    """(phases, domains); rows sum to 1"""
    max_epochs: float


@dataclass(frozen=True)
class Place:
    """Where a sequence stands: tokens start ... stop-1 of a shard."""

    domain: str
    shard: str
    start: int
    stop: int


def read_mix(folder: Path) -> Mix:
    """The mixture in a folder. Errors: BadInput."""
    try:
        mix = json.loads((folder / "mix.json").read_text(encoding="utf-8"))
        domains = tuple(sorted(mix["domains"]))
        rows = [[phase["probabilities"][name] for name in domains] for phase in mix["phases"]]
        return Mix(domains, tuple(phase["until"] for phase in mix["phases"]), np.array(rows, np.float64), mix["max_epochs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"pretrain: {folder / 'mix.json'} does not say which domain is drawn how often ({error!r}), so no batch can be made. Run the data stages again") from None


def read_report(tokens: Path) -> dict[str, Any]:
    """tokens.json. Errors: BadInput."""
    try:
        return json.loads((tokens / "tokens.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"pretrain: {tokens / 'tokens.json'} cannot be read ({error!r}), so it is unknown what the token files hold. Make the tokens again") from None


class TokenFile:
    """Sequences of `length` + 1 tokens (input and shifted target overlap) cut from a flat file of ids, which is mapped, not read."""

    def __init__(self, path: Path, length: int, vocab_size: int, dtype: str = "uint16") -> None:
        if not path.is_file():
            raise BadInput(f"pretrain: {path} does not exist, so there is nothing to learn from. Run the data stages")
        self.path, self.length, self.vocab_size = path, length, vocab_size
        self.tokens = np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
        self.n = max(0, (len(self.tokens) - 1) // length)

    def row(self, i: int) -> np.ndarray:
        """Sequence i: (T + 1,) int64. Errors: BadInput for a token that the vocabulary does not have."""
        row = self.tokens[i * self.length : (i + 1) * self.length + 1].astype(np.int64)
        if (largest := int(row.max())) >= self.vocab_size:
            raise BadInput(f"pretrain: {self.path} holds token {largest}, and the tokenizer has {self.vocab_size}: they do not belong together. Make the tokens again with this tokenizer")
        return row

    def rows(self, indices: list[int]) -> Tensor:
        """The sequences with these numbers: (B, T + 1)."""
        return torch.from_numpy(np.stack([self.row(i) for i in indices]))

    def spread(self, count: int) -> list[int]:
        """At most `count` sequences, evenly over the file."""
        return np.unique(np.linspace(0, self.n - 1, min(count, self.n)).astype(int)).tolist()


def heldout_by_domain(folder: Path, length: int, vocab_size: int) -> dict[str, TokenFile]:
    """The held-out tokens of each domain, the first shard's; a domain without one whole sequence is left out."""
    report = read_report(folder)
    shards = sorted((folder / "heldout").glob("*.bin"), reverse=True)  # so that of each domain the first one stays
    files = {path.stem.rpartition("-")[0]: TokenFile(path, length, vocab_size, report["dtype"]) for path in shards}
    return {domain: file for domain, file in sorted(files.items()) if file.n}


def heldout(folder: Path, length: int, vocab_size: int) -> TokenFile:
    """The held-out tokens of all domains. Errors: BadInput."""
    file = TokenFile(folder / "heldout.bin", length, vocab_size, read_report(folder)["dtype"])
    if not file.n:
        raise BadInput(f"pretrain: {file.path} does not hold one sequence of {length + 1} tokens, so nothing can be measured. Raise data.heldout_fraction, or lower model.context_tokens")
    return file


class TokenShards:
    """The sequences of every domain, over all its shards in their order."""

    def __init__(self, folder: Path, mix: Mix, length: int, vocab_size: int | None = None) -> None:
        """`vocab_size`: of the tokenizer that will read them; None = that of tokens.json. Errors: BadInput."""
        report = read_report(folder)
        vocab_size = vocab_size or report["vocab_size"]
        if report["vocab_size"] != vocab_size:
            raise BadInput(f"pretrain: {folder} was made with a tokenizer of {report['vocab_size']} tokens, and this one has {vocab_size}: they do not belong together. Make the tokens again with this tokenizer")
        self.domains, self.length = mix.domains, length
        self.files = [[_checked(folder / "train" / f"{shard['name']}.bin", shard["tokens"], length, vocab_size, report["dtype"])
                       for shard in report["domains"].get(name, {}).get("shards", [])] for name in mix.domains]  # fmt: skip
        self.ends = [np.cumsum([file.n for file in files], dtype=np.int64) for files in self.files]
        self.sizes = np.array([ends[-1] if len(ends) else 0 for ends in self.ends], np.int64)
        """(domains,) sequences of each"""
        if not self.sizes.any():
            raise BadInput(f"pretrain: {folder} does not hold one sequence of {length + 1} tokens, so there is nothing to learn from. Give more text, or lower model.context_tokens")

    def find(self, domain: int, sequence: int) -> tuple[TokenFile, int]:
        """The file that holds a domain's sequence, and the sequence's number in it."""
        shard = int(np.searchsorted(self.ends[domain], sequence, side="right"))
        file = self.files[domain][shard]
        return file, int(sequence - self.ends[domain][shard] + file.n)

    def rows(self, domains: np.ndarray, sequences: np.ndarray) -> Tensor:
        """The sequences of a batch: (B, T + 1)."""
        found = [self.find(domain, sequence) for domain, sequence in zip(domains.tolist(), sequences.tolist(), strict=True)]
        return torch.from_numpy(np.stack([file.row(i) for file, i in found]))

    def places(self, domains: np.ndarray, sequences: np.ndarray) -> list[Place]:
        """Where the sequences of a batch stand."""
        found = [(domain, *self.find(domain, sequence)) for domain, sequence in zip(domains.tolist(), sequences.tolist(), strict=True)]
        return [Place(self.domains[domain], file.path.stem, i * self.length, (i + 1) * self.length + 1) for domain, file, i in found]


def _checked(path: Path, tokens: int, length: int, vocab_size: int, dtype: str) -> TokenFile:
    file = TokenFile(path, length, vocab_size, dtype)
    if len(file.tokens) != tokens:
        raise BadInput(f"pretrain: {path} holds {len(file.tokens)} tokens, and tokens.json says {tokens}: batches would not be those of the data version. Bring it back with `dvc pull` or make the tokens again")
    return file


# ---------------------------------------------------------------- what stands at which position


class Schedule:
    """Domain and sequence at each position of a training."""

    def __init__(self, mix: Mix, sizes: np.ndarray, steps: int, batch_size: int | np.ndarray, seed: int) -> None:
        """`sizes`: (domains,) sequences of each; `batch_size`: of every step, or (steps,). Errors: BadInput where all data, repeated as often as allowed, do not reach."""
        self.ends = np.cumsum(np.broadcast_to(np.asarray(batch_size, np.int64), steps))
        """(steps,) positions after each step"""
        self.sizes, self.seed, self.n = sizes, seed, int(self.ends[-1])
        self.counts = allot(mix, sizes, self.ends)
        """(phases, domains) positions"""
        self._domains = np.concatenate([spread_evenly(row) for row in self.counts])  # (positions,)
        starts = np.arange(0, self.n, BLOCK)
        blocks = np.stack([np.add.reduceat(self._domains == domain, starts, dtype=np.int64) for domain in range(len(sizes))], axis=1)
        self._before = np.cumsum(blocks, axis=0) - blocks  # (blocks, domains) visits before each block
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Domains and sequences of a step, both (B,): the rank's share of them, where `world` processes divide the batch."""
        start = int(self.ends[step - 1]) if step else 0
        size = int(self.ends[step]) - start
        share = range(rank * size // world, (rank + 1) * size // world)
        return self.at(start + share.start, len(share))

    def at(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Domains and sequences at positions start ... start+count-1, both (count,)."""
        block = start // BLOCK
        near = self._domains[block * BLOCK : start + count]
        lead = len(near) - count  # positions of the block that come before
        sequences = np.empty(count, np.int64)
        for domain in np.unique(near[lead:]).tolist():
            where = np.flatnonzero(near == domain)
            visits = self._before[block, domain] + np.arange(len(where))
            asked = where >= lead
            sequences[where[asked] - lead] = self._visited(domain, visits[asked])
        return near[lead:], sequences

    def _visited(self, domain: int, visits: np.ndarray) -> np.ndarray:
        """The sequences that these visits to a domain see."""
        passes, within = np.divmod(visits, self.sizes[domain])
        return np.concatenate([self._order(domain, number)[within[passes == number]] for number in range(passes[0], passes[-1] + 1)])

    def _order(self, domain: int, number: int) -> np.ndarray:
        """The order of a pass; the last one of each domain is kept."""
        if self._orders.get(domain, (None,))[0] != number:
            self._orders[domain] = number, np.random.default_rng([self.seed, number]).permutation(int(self.sizes[domain]))
        return self._orders[domain][1]

    def drawn(self) -> np.ndarray:
        """(domains,) sequences that the whole training sees of each domain, repetitions counted."""
        return self.counts.sum(axis=0)


def places(tokens: Path, mix: Path, *, length: int, steps: int, batch_size: int | np.ndarray, seed: int, step: int) -> list[dict[str, Any]]:
    """Where each sequence of a step's batch stands: {"domain", "shard", "start", "stop"}. Errors: BadInput for a step that there is not."""
    if not 0 <= step < steps:
        raise BadInput(f"batch: step {step} is not one of this training's, which are 0 to {steps - 1}: it has no batch. Give one of them")
    mixture = read_mix(mix)
    files = TokenShards(tokens, mixture, length)
    return [asdict(place) for place in files.places(*Schedule(mixture, files.sizes, steps, batch_size, seed).batch(step))]


# ---------------------------------------------------------------- how many positions each domain gets


def allot(mix: Mix, sizes: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Positions of each domain in each phase: (phases, domains) int64, rows summing to the phase's positions. `after`: (steps,) positions. Errors: BadInput."""
    steps = np.round(np.array(mix.until) * len(after)).astype(np.int64)
    ends = np.concatenate([[0], after])[steps]
    lengths = np.diff(ends, prepend=0)
    most = np.floor(mix.max_epochs * sizes).astype(np.int64)
    counts = np.stack([_whole(share, n) for share, n in zip(_within(mix.probabilities, lengths, most), lengths, strict=True)])
    for domain in np.flatnonzero(counts.sum(axis=0) > most):
        for _ in range(counts[:, domain].sum() - most[domain]):
            _give_away_one(counts, domain, mix, most, sizes)
    return counts


def _within(probabilities: np.ndarray, lengths: np.ndarray, most: np.ndarray) -> np.ndarray:
    """The mixture nearest to the wanted one (in KL divergence, weighted by length) that asks of no domain more than it may give.

    That mixture is the wanted one with each domain scaled by one factor in all phases and the phases normalised (iterative
    scaling, Darroch and Ratcliff 1972). Where there is none, what is returned asks for too much.
    """
    shares, factors = probabilities, np.ones(len(most))
    for _ in range(FITTING_ROUNDS):
        asked = lengths @ shares
        over = np.divide(asked, most, out=np.where(asked > 0, np.inf, 0.0), where=most > 0)
        if over.max() <= FITTED:
            break
        factors = factors / np.maximum(over, 1)
        factors = factors / max(factors.max(), np.finfo(float).tiny)
        scaled = probabilities * factors
        if not scaled.sum(axis=1).all():  # a phase with nothing left to draw from
            break
        shares = scaled / scaled.sum(axis=1, keepdims=True)
    return shares


def _whole(shares: np.ndarray, n: int) -> np.ndarray:
    """n positions in proportion to the shares: each within one of its own (largest remainders)."""
    exact = shares * n
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: n - counts.sum()]] += 1
    return counts


def _give_away_one(counts: np.ndarray, domain: int, mix: Mix, most: np.ndarray, sizes: np.ndarray) -> None:
    """Move one position of a domain that has too many to the one with most room that has a share in the same phase. Errors: BadInput."""
    room = most - counts.sum(axis=0)
    candidates = [(int(room[other]), -phase, -other) for phase, other in np.argwhere(mix.probabilities > 0).tolist() if room[other] > 0 and counts[phase, domain]]
    if not candidates:
        raise BadInput(_too_short(mix, most, sizes, int(counts.sum())))
    _, phase, other = max(candidates)
    counts[-phase, domain] -= 1
    counts[-phase, -other] += 1


def _too_short(mix: Mix, most: np.ndarray, sizes: np.ndarray, asked: int) -> str:
    drawn = mix.probabilities.max(axis=0) > 0
    there = ", ".join(f"{name} {size:,}" for name, size, of in zip(mix.domains, sizes, drawn, strict=True) if of)
    return (
        f"pretrain: training takes {asked:,} sequences, and the mixture cannot give them: there are {there}, {int(most[drawn].sum()):,} with each repeated up to "
        f"max_epochs={mix.max_epochs:g} times, and a phase draws only from domains that have weight in it. Going on would be learning by heart (the data would be seen "
        f"{asked / max(1, int(sizes[drawn].sum())):.1f} times). Add data, lower pretrain.steps or batch_size, change data.mix.phases, or raise data.mix.max_epochs"
    )


def spread_evenly(counts: np.ndarray) -> np.ndarray:
    """An order of counts.sum() domains in which each has its count, and after any number of places is within one of its share."""
    return _spread_evenly(counts, np.zeros(int(counts.sum()), np.uint8 if len(counts) <= 256 else np.uint16))


@njit(cache=True)
def _spread_evenly(counts: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Tijdeman's rule: of the domains that may come now, the one that must come first."""
    n, domains = len(out), len(counts)
    slack = 1.0 - 1.0 / max(2 * domains - 2, 2)
    given = np.zeros(domains, np.int64)
    for at in range(n):
        first, earliest = 0, np.inf
        for domain in range(domains):
            if counts[domain] == 0:
                continue
            may_come = (at + 1) * counts[domain] - given[domain] * n >= n * (1.0 - slack)
            deadline = (given[domain] + slack) * n / counts[domain]
            if may_come and deadline < earliest:
                first, earliest = domain, deadline
        out[at] = first
        given[first] += 1
    return out
