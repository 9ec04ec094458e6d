"""Released models by one suite's score, each with its 95 % interval; champions are marked."""

from __future__ import annotations

from typing import Any

import streamlit as st

from components.evaluation.statistics import Z, cautious_error
from dashboards import look
from dashboards.services import releases

SHOWN = 25
WHICH = ("Best and champion of each model", "Every version")


def main() -> None:
    with look.told():
        found = releases.versions()
        suites = sorted({suite for version in found for suite in version.scores})
        if not suites:
            look.empty("No released version has scores yet. A recipe with `evals` measures its models before it releases one.")
            return
        with st.container(horizontal=True, vertical_alignment="bottom"):
            suite = st.selectbox("Suite", suites)
            which = st.segmented_control("Show", WHICH, default=WHICH[0])
        rows = ranked(found, suite, every=which == WHICH[1])
        look.intervals(rows[:SHOWN], ("champion", "others"), percent=all(0 <= row["value"] <= 1 for row in rows))
        st.caption(f"{look.plain(rows[0]['metric'])}. Dots are scores, lines their 95 % intervals. Intervals that overlap do not say that two models are alike: Compare looks at the same items.{f' The best {SHOWN} of {len(rows)}.' if len(rows) > SHOWN else ''}")
        table(rows, found, suites)


def ranked(found: list[releases.Version], suite: str, every: bool) -> list[dict[str, Any]]:
    """A row for each version that has the suite, the best first; of each model its best version and its champion, where not `every`."""
    rows = sorted((row(version, suite) for version in found if isinstance(version.scores.get(suite, {}).get("score"), int | float)), key=lambda one: -one["value"])
    if every:
        return rows
    seen: set[str] = set()
    return [one for one in rows if one["group"] == "champion" or not (one["model"] in seen or seen.add(one["model"]))]


def row(version: releases.Version, suite: str) -> dict[str, Any]:
    """A score with its interval, within [0, 1] where it is a share."""
    score = version.scores[suite]
    value, items, error = float(score["score"]), int(score.get("items") or 0), float(score.get("stderr") or 0.0)
    share = 0 <= value <= 1
    half = Z * (cautious_error(value, items, error) if share and items else error)
    low, high = (max(0.0, value - half), min(1.0, value + half)) if share else (value - half, value + half)
    return {"name": f"{version.model} {version.number}", "model": version.model, "uri": version.uri, "value": value, "low": low, "high": high, "items": items, "metric": score.get("metric", "score"), "group": "champion" if version.is_champion else "others"}


def table(rows: list[dict[str, Any]], found: list[releases.Version], suites: list[str]) -> None:
    """Every suite of the ranked versions."""
    by_uri = {version.uri: version for version in found}
    shown = [
        {"place": place, "model": one["name"], "champion": one["group"] == "champion", "score": f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]", "items": one["items"], **{suite: by_uri[one["uri"]].scores.get(suite, {}).get("score") for suite in suites}, "released": look.date(by_uri[one["uri"]].created), "page": by_uri[one["uri"]].page}
        for place, one in enumerate(rows, 1)
    ]  # fmt: skip
    look.table(shown, dict.fromkeys(suites, "%.3f"))


if __name__ == "__main__":
    main()
