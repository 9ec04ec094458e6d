"""How much one client may ask: requests and tokens in a minute, as two buckets that fill up evenly.

    limits = Limits(requests_per_minute=60, tokens_per_minute=0)
    wait_s = limits.take("ann", tokens=120)      # 0.0: go on; else seconds after which it would be let in, and nothing was taken
    limits.give_back("ann", tokens=80)           # what was reserved and not used
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MOST_CLIENTS = 10_000
"""Remembered at once; whoever asked longest ago is forgotten, and begins with full buckets."""


@dataclass
class _Bucket:
    level: float
    at: float

    def now(self, per_minute: int, clock: float) -> float:
        self.level, self.at = min(float(per_minute), self.level + (clock - self.at) * per_minute / 60), clock
        return self.level

    def wait_s(self, amount: float, per_minute: int, clock: float) -> float:
        """Seconds until `amount` is there; a full bucket lets more than it holds pass, and goes below nothing."""
        return max(0.0, (min(amount, per_minute) - self.now(per_minute, clock)) * 60 / per_minute)


class Limits:
    """The endpoint's own numbers; a key may have others."""

    def __init__(self, requests_per_minute: int, tokens_per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.usual, self.clock = (requests_per_minute, tokens_per_minute), clock
        self._clients: OrderedDict[str, tuple[_Bucket, _Bucket]] = OrderedDict()

    def take(self, client: str, tokens: int, own: tuple[int | None, int | None] = (None, None)) -> float:
        """Seconds to wait; 0.0 = it was taken."""
        rates = self._rates(own)
        if not any(rates):
            return 0.0
        clock = self.clock()
        buckets = self._of(client, rates, clock)
        asked = [(bucket, amount, rate) for bucket, amount, rate in zip(buckets, (1, tokens), rates, strict=True) if rate]
        wait_s = max(bucket.wait_s(amount, rate, clock) for bucket, amount, rate in asked)
        if wait_s <= 0:
            for bucket, amount, _ in asked:
                bucket.level -= amount
        return wait_s

    def give_back(self, client: str, tokens: int) -> None:
        """Tokens that were taken and not used; below nothing: more were used than taken."""
        if found := self._clients.get(client):
            found[1].level += tokens

    def _rates(self, own: tuple[int | None, int | None]) -> tuple[int, int]:
        return tuple(usual if mine is None else mine for mine, usual in zip(own, self.usual, strict=True))

    def _of(self, client: str, rates: tuple[int, int], clock: float) -> tuple[_Bucket, _Bucket]:
        if client not in self._clients:
            self._clients[client] = (_Bucket(rates[0], clock), _Bucket(rates[1], clock))
            if len(self._clients) > MOST_CLIENTS:
                self._clients.popitem(last=False)
        self._clients.move_to_end(client)
        return self._clients[client]
