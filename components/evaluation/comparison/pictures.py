"""Pictures of a comparison, as SVG: bars with intervals for each suite or subject, and a radar over the suites.

The SVG is written here: its colours are the page's, its text is text, and the same numbers give the same bytes. `alone` makes a file of one,
for MLflow and for slides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from components.evaluation.comparison.compare import Against, Row, Score

SCORES, STEP, MARGIN, GAP = 230, 230, 14, 44  # widths, in units of the drawing: scores, differences, and what is beside and between
LETTER = 6.6  # width of one, at most
HEAD, BAR, PAD, FOOT = 34, 10, 9, 24  # heights: head, one model's bar, between rows, axis
LONGEST = 38  # characters of a name that fit
COLOURS = ("#7d8793", "#1f6fa8", "#c5652a", "#3b8f67", "#8a5aa8", "#a58a1d")  # the first model is grey; told apart by colour-blind eyes too
FEWEST_AXES, MOST_AXES = 3, 14
RADIUS = 120

STYLE = (
    "text{font:12px system-ui,'Noto Sans','DejaVu Sans',sans-serif;fill:#1c2530}.soft{fill:#55606d;font-size:11px}"
    ".grid{stroke:#d8dbd3;stroke-width:1;fill:none}"
    ".zero{stroke:#55606d;stroke-width:1}.span{stroke-width:2}.whisker{stroke:#1c2530;stroke-width:1.2;opacity:.75}.area{fill-opacity:.1;stroke-width:2}"
    + "".join(f".m{i}{{fill:{colour};stroke:{colour}}}rect.m{i}{{stroke:none}}" for i, colour in enumerate(COLOURS))
)


def bars(title: str, rows: Sequence[Row], labels: Sequence[str], prefix: str = "") -> Markup:
    """A row for each suite or subject, whose scores go from 0 to 1. On the left every model's score with its interval, on the right how far each is
    from the first. `prefix` is left off names."""
    high = PAD + BAR * len(labels)
    names = [_cut(row.name.removeprefix(prefix).replace("_", " "), LONGEST) for row in rows]
    left = MARGIN + LETTER * max(map(len, names)) + 10
    middle = left + SCORES + GAP + STEP / 2
    bottom, width = HEAD + high * len(rows), middle + STEP / 2 + GAP
    reach = _reach(rows)
    parts = [_text(left, 14, "score, 95 % interval"), _text(middle, 14, f"minus {_cut(labels[0], 24)}, 95 % interval", "middle")]
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts += [
            _line(left + share * SCORES, HEAD - 6, left + share * SCORES, bottom, "grid"),
            _text(left + share * SCORES, bottom + 16, f"{share:g}", "middle"),
        ]
    for share in (-1, -0.5, 0, 0.5, 1):
        x = middle + share * STEP / 2
        parts += [_line(x, HEAD - 6, x, bottom, "grid" if share else "zero"), _text(x, bottom + 16, f"{share * reach:+.2g}" if share else "0", "middle")]
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = HEAD + i * high
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}<title>{}</title></text>').format(_n(left - 10), _n(top + high / 2 + 1), name, row.name))
        for model, (score, against) in enumerate(zip(row.scores, row.against, strict=True)):
            y = top + model * BAR
            parts += _bar(score, model, left, y, SCORES, labels[model])
            parts += _span(against, model, middle, y + BAR / 2, STEP / 2 / reach, reach, labels[model])
    return _svg(parts, width, bottom + FOOT, f"{title}: {len(rows)} rows, {', '.join(labels)}; the table has the numbers")


def radar(rows: Sequence[Row], labels: Sequence[str]) -> Markup | None:
    """Every model's scores as a ring over the suites, from 0 in the middle to the rim; None with fewer than three suites that all have."""
    axes = [row for row in rows if all(score and 0 <= score.score <= 1 for score in row.scores)][:MOST_AXES]
    if len(axes) < FEWEST_AXES:
        return None
    width, height = 2 * RADIUS + 2 * 130, 2 * RADIUS + 2 * 34
    rim = _round_up(max([0.1, *(score.score for row in axes for score in row.scores if score)]))

    def at(axis: int, share: float) -> tuple[float, float]:
        angle = 2 * math.pi * axis / len(axes)
        return width / 2 + RADIUS * share * math.sin(angle), height / 2 - RADIUS * share * math.cos(angle)

    parts = [Markup('<polygon class="grid" points="{}"/>').format(_points([at(i, share) for i in range(len(axes))])) for share in (0.25, 0.5, 0.75, 1)]
    for i, row in enumerate(axes):
        parts.append(_line(*at(i, 0), *at(i, 1), "grid"))
        x, y = at(i, 1.1)
        anchor = "middle" if abs(x - width / 2) < 8 else "start" if x > width / 2 else "end"
        parts.append(_text(x, y + 4, _cut(row.name.replace("_", " "), 20), anchor))
    for model in range(len(labels)):
        ring = [at(i, row.scores[model].score / rim) for i, row in enumerate(axes)]  # type: ignore[union-attr]
        parts.append(Markup('<polygon class="area m{}" points="{}"><title>{}</title></polygon>').format(model % len(COLOURS), _points(ring), labels[model]))
    parts += [_text(width / 2 + 4, height / 2 - RADIUS * share + 12, f"{share * rim:g}") for share in (0.5, 1)]
    return _svg(parts, width, height, f"Radar of {len(axes)} suites for {', '.join(labels)}: 0 in the middle, {rim:g} at the rim")


def alone(svg: Markup, labels: Sequence[str]) -> str:
    """The drawing as a file of its own: colours inside, and a line that says which model is which."""
    head, _, rest = str(svg).partition(">")
    box = head.partition('viewBox="0 0 ')[2].partition('"')[0]
    width, height = (float(number) for number in box.split())
    keys, x = [], MARGIN
    for model, label in enumerate(labels):
        keys.append(
            Markup('<rect class="m{}" x="{}" y="{}" width="10" height="10"/><text x="{}" y="{}">{}</text>').format(
                model % len(COLOURS), x, _n(height + 6), x + 15, _n(height + 15), _cut(label, 40)
            )
        )
        x += 30 + 7 * min(len(label), 40)
    new = head.replace(box, f"{_n(max(width, x))} {_n(height + 24)}").replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"')
    return f'{new}><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>' + rest.removesuffix("</svg>") + "".join(keys) + "</svg>\n"


def _bar(score: Score | None, model: int, left: float, y: float, scale: float, label: str) -> list[Markup]:
    if score is None:
        return [_text(left + 3, y + BAR - 1, "–")]
    said = Markup("<title>{}: {} ({} to {})</title>").format(label, f"{score.score:.3f}", f"{score.low:.3f}", f"{score.high:.3f}")
    length = max(0.5, scale * score.score)
    return [
        Markup('<rect class="m{}" x="{}" y="{}" width="{}" height="{}">{}</rect>').format(model % len(COLOURS), _n(left), _n(y), _n(length), BAR - 2, said),
        _line(left + scale * max(score.low, 0), y + BAR / 2 - 1, left + scale * score.high, y + BAR / 2 - 1, "whisker"),
    ]


def _span(against: Against | None, model: int, zero: float, y: float, scale: float, reach: float, label: str) -> list[Markup]:
    if against is None:
        return []
    difference, low, high = against.difference
    a, b = (min(max(value, -reach), reach) for value in (low, high))
    said = Markup("<title>{}: {} ({} to {}), {}</title>").format(label, f"{difference:+.3f}", f"{low:+.3f}", f"{high:+.3f}", against.verdict)
    kind = f"m{model % len(COLOURS)}"
    return [
        _line(zero + scale * a, y - 1, zero + scale * b, y - 1, f"span {kind}"),
        Markup('<circle class="{}" cx="{}" cy="{}" r="3.4">{}</circle>').format(kind, _n(zero + scale * min(max(difference, -reach), reach)), _n(y - 1), said),
    ]


def _reach(rows: Sequence[Row]) -> float:
    """How far the axis of differences goes to either side."""
    ends = [abs(value) for row in rows for one in row.against if one for value in one.difference if math.isfinite(value)]
    return _round_up(max([0.01, *ends]))


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 6, 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return next(float(f"{step * power:.6g}") for step in (1, 2, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, _n(x1), _n(y1), _n(x2), _n(y2))


def _text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return Markup('<text class="soft" x="{}" y="{}" text-anchor="{}">{}</text>').format(_n(x), _n(y), anchor, text)


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _svg(parts: Sequence[Markup], width: float, height: float, said: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_n(width), _n(height), said) + Markup("").join(parts) + Markup("</svg>")
