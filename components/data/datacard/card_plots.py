"""How the data card shows figures: numbers as text, table cells with bars and shades, histograms and curves as inline SVG.

The SVG is written here rather than by matplotlib: its colours are the page's (classes that follow light and dark), its text
is text, it is a tenth of the size, and the same numbers give the same bytes. Wide bars are table cells with a background,
so that on a phone the words stay readable and a screen reader reads the table.

Nothing here trusts its input: every text goes through `markupsafe.escape`, or through the template, which escapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

WIDTH, HEIGHT = 360, 168  # of a plot's drawing, in its own units; about the width of a phone, so that text is never scaled down
LEFT, RIGHT, TOP, BOTTOM = 8, 8, 20, 24
CHARACTER = 7  # width of one on an axis, at most
LABELS = 5  # on an axis, at most
# Characters that HTML forbids or that cannot be seen, and what is shown for them
CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"} | {127: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
CONTROL |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD) | {0xFFFE: 0xFFFD, 0xFFFF: 0xFFFD}


@dataclass(frozen=True)
class Cell:
    """One cell: text, a figure (right-aligned), a bar or a shade of `share` in [0, 1], or an excerpt of somebody's text."""

    text: str
    kind: str = "text"
    share: float = 0.0


@dataclass(frozen=True)
class Table:
    """Rows under named columns; `folded` hides it behind its caption."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Plot:
    """A drawing, what it says in words, and the table behind it."""

    title: str
    svg: Markup
    table: Table
    kind: str = "plot"


@dataclass(frozen=True)
class Stack:
    """Rows of shares that sum to 1: [(row, {part: share})]; the table behind it is a Table of its own."""

    title: str
    parts: Sequence[str]
    rows: Sequence[tuple[str, Mapping[str, float]]]
    kind: str = "stack"


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str
    kind: str = "note"


@dataclass(frozen=True)
class Code:
    """Text to copy, under a caption."""

    caption: str
    text: str
    folded: bool = False
    kind: str = "code"


@dataclass(frozen=True)
class Excerpts:
    """Pieces of text behind a caption: [(label, text)]; `teaser` is how the text begins, beside the caption."""

    caption: str
    items: Sequence[tuple[str, str]]
    teaser: str = ""
    kind: str = "excerpts"


@dataclass(frozen=True)
class Section:
    """A part of the page; `id` is its anchor."""

    id: str
    title: str
    lead: str
    blocks: Sequence[Block]

    @property
    def runs(self) -> list[tuple[str, list[Block]]]:
        """The blocks, neighbours of a kind together: plots stand side by side."""
        return [(kind, list(blocks)) for kind, blocks in groupby(self.blocks, key=lambda block: block.kind)]


Block = Table | Plot | Stack | Note | Code | Excerpts


def count(number: float) -> str:
    """12,345; of a fraction at most three digits."""
    return f"{number:,.0f}" if float(number).is_integer() or abs(number) >= 1000 else f"{number:.3g}"


def size(number: float) -> str:
    """Bytes in decimal units, three digits: 1.23 MB."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:#.3g}".rstrip(".") + f" {unit}"
        number /= 1000
    raise AssertionError("the last unit takes everything")


def decimal(number: float) -> str:
    """Two places after the point."""
    return f"{number:.2f}"


def short(number: float) -> str:
    """For axes and headlines: 1.2k, 3.4M, 5.6B."""
    for limit, unit in ((999.5e9, "T"), (999.5e6, "B"), (999.5e3, "M"), (999.5, "k")):
        if abs(number) >= limit:
            return f"{number / {'T': 1e12, 'B': 1e9, 'M': 1e6, 'k': 1e3}[unit]:.3g}{unit}"
    return f"{number:.4g}"


def percent(share: float) -> str:
    """12.3 %, 1.23 %; what is there never rounds to nothing, and what is not all never to all."""
    if share in (0, 1):
        return f"{100 * share:g} %"
    if share < 0.0001:
        return "< 0.01 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %" if share >= 0.09995 else f"{100 * share:.2f} %"


def binary(number: float) -> str:
    """Bytes in binary units, for edges that are powers of two: 64 B, 2 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:,.4g} {unit}"
        number /= 1024
    raise AssertionError("the last unit takes everything")


def words(name: str) -> str:
    """fewer_than_50_words as it is spoken."""
    return name.replace("_", " ")


def part(number: float, whole: float) -> float:
    """number / whole, 0 of nothing."""
    return number / whole if whole else 0.0


def figure(number: float | None, shown: Callable[[float], str] = count) -> Cell:
    """A number, right-aligned; a dash where there is none."""
    return Cell("–" if number is None else shown(number), "figure")


def bar(number: float, whole: float, shown: str | None = None) -> Cell:
    """A bar of number / whole, labelled with the share."""
    share = part(number, whole)
    return Cell(percent(share) if shown is None else shown, "bar", min(max(share, 0.0), 1.0))


def shade(number: float, most: float) -> Cell:
    """A cell of a matrix, the darker the nearer to `most`; on a square-root scale, so that a few are seen beside many."""
    return Cell(count(number) if number else "·", "shade", math.sqrt(part(number, most)))


def excerpt(text: str) -> Cell:
    """Somebody's text."""
    return Cell(visible(text), "excerpt")


def visible(text: str) -> str:
    """Text without characters that HTML forbids or that cannot be seen: NUL becomes ␀, a lone surrogate �. White space becomes single spaces."""
    return " ".join(str(text).translate(CONTROL).split())


def histogram(
    title: str, bins: Mapping[str, int], unit: str, shown: Callable[[float], str] = count, of: str = "documents", step: float | None = None, within: Sequence[float] = ()
) -> Plot:
    """Counts by lower edge of the bin, as `tally` keeps them.

    `step`: width of a bin; None = each is twice as wide as the one before (edges are powers of two, and 0). `within`: edges that are drawn
    even where nothing lies, so that histograms beside each other have one scale.
    """
    filled = _filled({edge: 0 for edge in within} | {float(edge): number for edge, number in bins.items()}, step)
    edges, numbers = list(filled), list(filled.values())
    most, total = max(numbers), sum(numbers)
    wide = (WIDTH - LEFT - RIGHT) / len(edges)
    parts = [f'<text x="{LEFT}" y="12" class="axis">most in a bin: {count(most)}</text>']
    for i, number in enumerate(numbers):
        if number:
            high = max(1.0, (HEIGHT - TOP - BOTTOM) * number / most)
            hover = Markup("<title>{}: {} {}</title>").format(_range(edges, i, shown), count(number), of)
            parts.append(
                f'<rect class="bar" x="{LEFT + i * wide + wide * 0.06:.2f}" y="{HEIGHT - BOTTOM - high:.2f}" width="{wide * 0.88:.2f}" height="{high:.2f}">{hover}</rect>'
            )
    parts += _base_line()
    labelled = range(0, len(edges), max(1, math.ceil(len(edges) / LABELS)))
    for i in labelled:
        fits = LEFT + i * wide + CHARACTER * len(shown(edges[i])) < WIDTH
        parts.append(_label(LEFT + i * wide if fits else WIDTH - RIGHT, HEIGHT - 7, shown(edges[i]), "start" if fits else "end"))
    rows = [[Cell(_range(edges, i, shown)), figure(number), bar(number, total)] for i, number in enumerate(numbers) if number]
    peak = numbers.index(most)
    said = f"{title}: histogram of {count(total)} {of}; most, {count(most)}, at {_range(edges, peak, shown)}"
    return Plot(title, _svg(parts, said), Table(f"{title}: the numbers", (unit, of, "share"), rows, folded=True))


def curve(title: str, points: Sequence[tuple[float, float]], mark: float, marked: str, columns: tuple[str, str]) -> Plot:
    """A curve in the unit square, with a vertical line at `mark`."""

    def at(x: float, y: float) -> str:
        return f"{LEFT + 22 + x * (WIDTH - LEFT - RIGHT - 22):.2f},{HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM):.2f}"

    x, bottom = at(mark, 0).split(",")
    parts = [
        f'<line class="mark" x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{bottom}"/>',
        _label(float(x) - 4, TOP + 2, marked, "end"),
        f'<polyline class="curve" points="{" ".join(at(*point) for point in points)}"/>',
        *_base_line(),
        *(_label(float(at(tick, 0).split(",")[0]), HEIGHT - 7, f"{tick:g}", "middle" if 0 < tick < 1 else "end" if tick else "start") for tick in (0, 0.25, 0.5, 0.75, 1)),
        *(_label(LEFT, float(at(0, tick).split(",")[1]) + 4, f"{tick:g}", "start") for tick in (0.5, 1)),
    ]
    rows = [[figure(a), figure(b, percent)] for a, b in points if round(a * 20, 6).is_integer()]
    said = f"{title}: {columns[1]} against {columns[0]}, rising near {mark:g}"
    return Plot(title, _svg(parts, said), Table(f"{title}: the numbers", columns, rows, folded=True))


def _filled(bins: dict[float, int], step: float | None) -> dict[float, int]:
    """The bins with the empty ones between them."""
    if step:
        places = {round(edge / step): number for edge, number in bins.items()}
        return {float(f"{i * step:.9g}"): places.get(i, 0) for i in range(min(places), max(places) + 1)}
    powers = {math.frexp(edge)[1] - 1: number for edge, number in bins.items() if edge}
    doubling = {2.0**i: powers.get(i, 0) for i in range(min(powers), max(powers) + 1)} if powers else {}
    return {edge: number for edge, number in bins.items() if not edge} | doubling


def _range(edges: Sequence[float], i: int, shown: Callable[[float], str]) -> str:
    return f"{shown(edges[i])} to {shown(edges[i + 1])}" if i + 1 < len(edges) else f"{shown(edges[i])} and more"


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return Markup('<text class="axis" x="{}" y="{}" text-anchor="{}">{}</text>').format(f"{x:.2f}", f"{y:.2f}", anchor, text)


def _base_line() -> list[str]:
    return [f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>']


def _svg(parts: Sequence[str], said: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, said)
    return head + Markup("".join(parts)) + Markup("</svg>")
