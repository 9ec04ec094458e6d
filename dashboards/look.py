"""How things are written and drawn on every page: spans of time, amounts, states, curves, intervals, and services that are away.

Charts are Vega-Lite, drawn by what Streamlit brings along. What models and people wrote is shown by `words`, never as Markdown or HTML.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import streamlit as st

COLOURS = {"RUNNING": "blue", "PENDING": "orange", "PAUSED": "violet", "CANCELLING": "orange", "COMPLETED": "green", "FAILED": "red", "CRASHED": "red"}
AXIS = ",.4~r"
FEW = 12  # points of a curve that are marked, since a line between one or two is hard to see
PAIR = ("#2a6fdb", "#e0772b")  # the first and the second of two models, everywhere


class told:
    """A service that does not answer is a sentence in its place on the page; the rest of the page stands."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, OSError):
            st.warning(f"Not to be had just now. {error}", icon=":material/cloud_off:")
            return True
        return False


def empty(text: str) -> None:
    """What stands where nothing is yet, with what to do about it."""
    st.info(text, icon=":material/inbox:")


def facts(*pairs: tuple[str, Any]) -> None:
    """A row of figures that wraps on a phone: (what, how much)."""
    with st.container(horizontal=True, gap="small"):
        for label, value in pairs:
            st.metric(label, value, border=True, width="content")


def table(rows: Sequence[Mapping[str, Any]], numbers: Mapping[str, str] | None = None, height: int | None = None) -> None:
    """Rows as a table; the column `page` is a link, columns that are empty in every row are left out. `numbers`: a format (%.3f) by column."""
    filled = [name for name in dict.fromkeys(name for row in rows for name in row) if any(row.get(name) not in (None, "") for row in rows)]
    config: dict[str, Any] = {name: st.column_config.NumberColumn(format=form) for name, form in (numbers or {}).items()}
    config["page"] = st.column_config.LinkColumn("page", display_text="open", width="small")
    st.dataframe([{name: row.get(name) for name in filled} for row in rows], hide_index=True, width="stretch", height=height or "auto", column_config=config)


def words(text: str, height: int | None = None) -> None:
    """Text as it is, wrapped."""
    st.code(text, language=None, wrap_lines=True, height=height or "content")


def badge(state_type: str, name: str) -> str:
    """A state as Markdown."""
    return f":{COLOURS.get(state_type, 'gray')}-badge[{name}]"


def plain(text: str) -> str:
    """Text that others wrote, for a place that reads Markdown: nothing in it is a mark."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|~$:" else c for c in text)


def span(seconds: float) -> str:
    """5 s, 12 min 3 s, 3 h 20 min, 2 d 4 h."""
    s = int(seconds)
    if s >= 86400:
        return f"{s // 86400} d {s % 86400 // 3600} h"
    return f"{s // 3600} h {s % 3600 // 60} min" if s >= 3600 else f"{s // 60} min {s % 60} s" if s >= 60 else f"{s} s"


def ago(moment: float | None) -> str:
    """5 min ago; a date where it was more than a week."""
    if moment is None:
        return ""
    gone = max(0.0, time.time() - moment)
    return date(moment) if gone > 7 * 86400 else "just now" if gone < 10 else f"{span(gone).rpartition(' ')[0].split(' ')[0]} {_unit(gone)} ago"


def date(moment: float) -> str:
    """2026-11-21 20:16, in this machine's time."""
    return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M")


def amount(value: float) -> str:
    """Four digits that matter: 0.0056, 1.234, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def lines(rows: Sequence[Mapping[str, Any]], title: str, colours: Sequence[str] | None = None, height: int = 200) -> None:
    """Curves: rows of run, step, value; one run needs no legend. `title`: what is measured, at the upright axis."""
    names = list(dict.fromkeys(row["run"] for row in rows))
    colour: dict[str, Any] = {"field": "run", "type": "nominal", "legend": {"orient": "top", "title": None, "labelLimit": 260, "columns": 1} if len(names) > 1 else None}
    if colours:
        colour["scale"] = {"domain": names, "range": list(colours)}
    spec = {
        "mark": {"type": "line", "interpolate": "linear", "strokeWidth": 1.8, "point": len(rows) < FEW},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": "step", "axis": {"tickCount": 5, "format": ",d"}},
            "y": {"field": "value", "type": "quantitative", "title": title, "scale": {"zero": False}, "axis": {"tickCount": 5}},
            "color": colour,
            "tooltip": [{"field": "run"}, {"field": "step"}, {"field": "value", "format": ".4f"}],
        },
    }
    st.vega_lite_chart(list(rows), spec, height=height + 24 * (len(names) if len(names) > 1 else 0), width="stretch")


def intervals(rows: Sequence[Mapping[str, Any]], groups: Sequence[str], zero: bool = False, percent: bool = True) -> None:
    """A dot and its interval for each row of name, value, low, high, group, in the order given. `groups` fixes their colours; `zero`: a line to compare with."""
    x = {"type": "quantitative", "title": None, "scale": {"zero": False, "nice": True}, "axis": {"format": "+.0%" if zero and percent else ".0%" if percent else ".3~g", "tickCount": 5}}
    y = {"field": "name", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 150, "labelOverlap": False}}
    colour = {"field": "group", "type": "nominal", "scale": {"domain": list(groups)}, "legend": {"orient": "top", "title": None, "columns": 2 if len(groups) < 3 else 1}}
    tooltip = [{"field": "name"}, *({"field": name, "format": ".4f"} for name in ("value", "low", "high"))]
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}, "y": y, "color": colour, "tooltip": tooltip}},
        {"mark": {"type": "point", "filled": True, "size": 80, "opacity": 1}, "encoding": {"x": {"field": "value", **x}, "y": y, "color": colour, "tooltip": tooltip}},
    ]
    if zero:
        layers.insert(0, {"data": {"values": [{"at": 0}]}, "mark": {"type": "rule", "strokeDash": [4, 4], "color": "#8a93a0"}, "encoding": {"x": {"field": "at", **x}}})
    st.vega_lite_chart(list(rows), {"layer": layers}, height=_height(rows, 100 if len(groups) < 3 else 140), width="stretch")


def bars(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """A bar for each row of name, value, in the order given."""
    spec = {
        "mark": {"type": "bar", "cornerRadiusEnd": 3},
        "encoding": {
            "x": {"field": "value", "type": "quantitative", "title": None, "axis": {"tickCount": 4, "format": AXIS}},
            "y": {"field": "name", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 180}},
            "tooltip": [{"field": "name"}, {"field": "value", "format": ",.6~g"}],
        },
    }
    st.markdown(f"**{title}**")
    st.vega_lite_chart(list(rows), spec, height=_height(rows, 70), width="stretch")


def _height(rows: Sequence[Any], around: int) -> int:
    """Pixels for a row each, and what axis and legend take."""
    return around + 30 * len(rows)


def _unit(seconds: float) -> str:
    return "d" if seconds >= 86400 else "h" if seconds >= 3600 else "min" if seconds >= 60 else "s"
