"""A comparison for a terminal: one table of scores, what changed, and a few items won and lost. The page has the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.evaluation.comparison import page, words
from components.evaluation.comparison.compare import Against, Comparison, Flip

SHOWN_CHANGES, SHOWN_NUMBERS, CHARACTERS = 24, 12, 110
STYLES = {"better": "green", "worse": "red", "no difference seen": "dim"}


def show(comparison: Comparison, console: Console, items: int = 1) -> None:
    """Print it. `items`: won and lost ones shown of each suite and model."""
    console.print(Text("\n".join(words.summary(comparison)), style="bold"))
    console.print(_scores(comparison))
    for warning in comparison.warnings:
        console.print(Text(f"  beware: {warning}", style="yellow"))
    for kind, rows in comparison.figures.items():
        cells = [
            [row.name, words.number(row.values[0]), *(text for value in row.values[1:] for text in (words.number(value), words.change(row.values[0], value)))]
            for row in rows
        ]
        columns = ["figure", comparison.labels[0], *(text for label in comparison.labels[1:] for text in (label, "change"))]
        console.print(_table(words.kind(kind), columns, cells, SHOWN_NUMBERS, right=True))
    _changes(comparison, console)
    for suite, flips in comparison.flips.items():
        lines = list(_flips(comparison, flips, items))
        if lines:
            console.print(Text(f"\n{suite}: items won and lost", style="bold"))
            for line in lines:
                console.print(line)


def _scores(comparison: Comparison) -> Table:
    many = len(comparison.labels) > 2
    table = _empty(
        "Scores and differences, with 95 % intervals",
        ["suite", "items", comparison.labels[0], *(["against it"] if many else []), "score" if many else comparison.labels[1]],
    )
    for column in ("difference", "p, corrected", "won / lost"):
        table.add_column(column, justify="right")
    table.add_column("")
    for name, row in comparison.suites.items():
        for i, against in enumerate(row.against[1:], 1):
            most = max(score.items for score in row.scores if score)
            cells = [name, f"{most:,}", words.score(row.scores[0])] if i == 1 else ["", "", ""]
            cells += [_label(comparison.labels[i])] if many else []
            cells += [words.score(row.scores[i]), words.difference(against), words.p_value(against), words.won_lost(against)]
            table.add_row(*map(Text, cells), _verdict(against))
    return table


def _verdict(against: Against | None) -> Text:
    if against is None:
        return Text("not compared", style="dim")
    return Text(against.verdict + ("" if against.items else " (independent samples)"), style=STYLES[against.verdict])


def _changes(comparison: Comparison, console: Console) -> None:
    changes = comparison.changes
    for kind, caption in page.KINDS.items():
        rows = getattr(changes, kind)
        if rows:
            cells = [[name, *(words.value(value, 40) for value in values)] for name, values in rows.items()]
            console.print(_table(caption, ["what changed", *comparison.labels], cells, SHOWN_CHANGES))
    if not any(getattr(changes, kind) for kind in page.KINDS):
        console.print("\nNothing that is recorded changed: options, data and code are the same.", highlight=False)
    for line in (*changes.history[:SHOWN_CHANGES], *changes.unknown):
        console.print(Text(f"  {words.visible(line)}", style="dim"))


def _flips(comparison: Comparison, flips: Sequence[Flip], shown: int) -> Iterator[Text]:
    left = {(i, side): shown for i in range(1, len(comparison.labels)) for side in (True, False)}
    for flip in flips:
        sides = [(i, side) for i, side in enumerate(flip.won, 1) if side is not None and left[(i, side)] > 0]
        if not sides:
            continue
        for key in sides:
            left[key] -= 1
        for i, side in sides:
            who = f" by {_label(comparison.labels[i])}" if len(comparison.labels) > 2 else ""
            yield Text.assemble(
                "  ", ("won" if side else "lost", "green" if side else "red"), f"{who}  ", (f"{flip.task} {flip.id}  ", "dim"), _flat(flip.question)
            )
            said = [("right", flip.target), *((_label(comparison.labels[j]), flip.outputs[j] or "") for j in (0, i))]
            yield from (Text.assemble((f"        {whose}  ", "dim"), _flat(text)) for whose, text in said)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], shown: int, right: bool = False) -> Table:
    table = _empty(title, columns, right)
    for row in rows[:shown]:
        table.add_row(*map(Text, row))  # as they are: somebody's brackets are no markup of ours
    if len(rows) > shown:
        table.add_row(f"and {len(rows) - shown} more (on the page)")
    return table


def _empty(title: str, columns: Sequence[str], right: bool = False) -> Table:
    table = Table(title=Text(f"\n{title}"), title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(Text(_label(column) if i else column), justify="right" if right and i else "left", overflow="fold")
    return table


def _label(label: str, longest: int = 36) -> str:
    """A model's name, its end kept: that is where names of one family differ."""
    return label if len(label) <= longest else "…" + label[1 - longest :]


def _flat(text: str, longest: int = CHARACTERS) -> str:
    """One line of somebody's text."""
    flat = " ".join(words.visible(text.strip()).replace("\n", " ⏎ ").split())
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"
