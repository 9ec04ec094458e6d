"""The canary's history as an SVG in a data address, which the Prefect page shows without asking anybody."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, RIGHT, TOP = 760, 300, 50, 40, 130, 16
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888", "#000000")  # Paul Tol's bright scheme
SHOWN = 60  # canaries


def picture(entries: Sequence[dict[str, Any]]) -> str:
    """A line for each stage, a ring where its result was another one than before."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(entries[-SHOWN:]).encode()).decode()


def svg(entries: Sequence[dict[str, Any]]) -> str:
    """The picture itself."""
    names = list(dict.fromkeys(name for entry in entries for name in entry["stages"]))
    top = max((stage["seconds"] for entry in entries for stage in entry["stages"].values()), default=1.0) or 1.0
    body = [_axes(entries, top)]
    for number, name in enumerate(names):
        body.append(_line(entries, name, COLOURS[number % len(COLOURS)], top))
        y = TOP + 14 + 18 * number
        body.append(f'<rect x="{WIDTH - RIGHT + 12}" y="{y - 9}" width="10" height="10" fill="{COLOURS[number % len(COLOURS)]}"/><text x="{WIDTH - RIGHT + 28}" y="{y}">{escape(name)}</text>')
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{"".join(body)}</svg>'


def _at(index: int, seconds: float, count: int, top: float) -> tuple[float, float]:
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return LEFT + width * (index / max(count - 1, 1)), TOP + height * (1 - seconds / top)


def _axes(entries: Sequence[dict[str, Any]], top: float) -> str:
    lines = []
    for share in (0.0, 0.5, 1.0):
        y = _at(0, share * top, 1, top)[1]
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/><text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share * top:.0f} s</text>')
    first, last = (entries[index]["at"][:16].replace("T", " ") for index in (0, -1)) if entries else ("", "")
    ends = [(LEFT, "start", first), (WIDTH - RIGHT, "end", last)] if len(entries) > 1 else [(LEFT, "start", first)]
    return "".join(lines + [f'<text x="{x}" y="{HEIGHT - 14}" text-anchor="{anchor}">{text}</text>' for x, anchor, text in ends])


def _line(entries: Sequence[dict[str, Any]], name: str, colour: str, top: float) -> str:
    points, rings, before = [], [], None
    for index, entry in enumerate(entries):
        stage = entry["stages"].get(name)
        if stage is None:
            continue
        x, y = _at(index, stage["seconds"], len(entries), top)
        points.append(f"{x:.1f},{y:.1f}")
        changed = before is not None and before != stage["hash"]
        rings.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if changed else 2}" fill="{"none" if changed else colour}" stroke="{colour}"/>')
        before = stage["hash"]
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"/>{"".join(rings)}'
