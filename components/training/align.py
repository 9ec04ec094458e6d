"""What every way of aligning is given, besides its config: the same for PPO, GRPO, DPO and best-of-N.

    ppo.run(config, given, out, context) -> Outcome          # and grpo.run, dpo.run, best_of_n.run
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Given:
    """Folders, and what runs code."""

    chat: Path
    """The chat model to begin from; it is the reference too."""
    scorers: dict[str, Path]
    """Scalar models by role, those that the recipe has: reward, cost, judge."""
    preferences: Path
    """train.jsonl and heldout.jsonl of pairs."""
    chats: Path
    """train.jsonl and heldout.jsonl of chats."""
    run_tests: Callable[[Sequence[str]], list[bool]]
    """Runs programs in the sandbox, several at a time: whether each ran to its end. Errors: BadInput where this host cannot isolate."""
