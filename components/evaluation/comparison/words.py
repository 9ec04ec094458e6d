"""How a comparison is said: figures as text, verdicts as sentences, somebody's text made visible. For the page and the terminal alike."""

from __future__ import annotations

import json
import math
from typing import Any

from components.evaluation.comparison.compare import Against, Comparison, Score

# Characters that HTML forbids or that move a terminal's cursor, and what is shown for them
CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
CONTROL |= (
    dict.fromkeys(range(0xD800, 0xE000), 0xFFFD) | {0xFFFE: 0xFFFD, 0xFFFF: 0xFFFD} | dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD)
)


def score(one: Score | None) -> str:
    return "–" if one is None else f"{one.score:.3f} [{one.low:.3f}, {one.high:.3f}]"


def difference(one: Against | None) -> str:
    return "–" if one is None else f"{one.difference.difference:+.3f} [{one.difference.low:+.3f}, {one.difference.high:+.3f}]"


def p_value(one: Against | None) -> str:
    if one is None:
        return "–"
    return "< 0.0001" if one.corrected_p < 0.0001 else f"{one.corrected_p:.4f}" if one.corrected_p < 0.01 else f"{one.corrected_p:.2f}"


def won_lost(one: Against | None) -> str:
    return "–" if one is None or not (one.items or one.won or one.lost) else f"{one.won:,} / {one.lost:,}"


def number(value: float | None) -> str:
    """Four digits; from a thousand on whole, with commas."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def change(first: float | None, other: float | None) -> str:
    return "–" if first is None or other is None else f"{other - first:+.4g}"


def value(one: Any, longest: int = 120) -> str:
    """An option's value; what is long is cut."""
    text = "–" if one is None else one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)
    return visible(text if len(text) <= longest else f"{text[: longest - 1]}…")


def visible(text: str) -> str:
    """Somebody's text with nothing unseen in it: NUL becomes ␀, a lone surrogate and an override of direction �."""
    return str(text).replace("\r\n", "\n").translate(CONTROL)


def kind(name: str) -> str:
    """What a kind of figures is called."""
    known = {
        "text": "Held-out text",
        "second": "Second metrics",
        "contamination": "Scores by contamination: all items, those clean of the training data, and the others",
    }
    return known.get(name, f"Probe: {name.replace('_', ' ')}")


def summary(comparison: Comparison) -> list[str]:
    """One sentence for each model after the first."""
    first, sentences = comparison.labels[0], []
    for i, label in enumerate(comparison.labels[1:], 1):
        found = {suite: row.against[i] for suite, row in comparison.suites.items() if row.against[i]}
        by = {verdict: [suite for suite, one in found.items() if one and one.verdict == verdict] for verdict in ("better", "worse", "no difference seen")}
        parts = [f"{verdict} than {first} on {', '.join(by[verdict])}" for verdict in ("better", "worse") if by[verdict]]
        if by["no difference seen"]:
            parts.append(f"{'otherwise ' if parts else ''}no difference is seen on {', '.join(by['no difference seen'])}")
        sentences.append(f"{label}: {'; '.join(parts) or f'no suite can be compared with {first}'}.")
    return sentences
