"""Two released models side by side: scores with paired intervals, curves overlaid, and what they answered to the same prompts."""

from __future__ import annotations

from typing import Any

import streamlit as st

from components.evaluation.statistics import Difference, is_binary, paired_difference, paired_share_difference, unpaired_difference
from dashboards import look
from dashboards.services import mlflow, releases, web

CURVES = {"pretrain": "loss", "sft": "loss", "reward": "loss", "dpo": "loss", "ppo": "reward", "grpo": "reward", "best_of_n": "loss"}
VERDICTS = ("second is better", "first is better", "not told apart")
RESAMPLES = 2000  # of the bootstrap, for scores that are not right or wrong
SAMPLES = 12


def main() -> None:
    with look.told():
        found = releases.versions()
        if len(found) < 2:
            look.empty("Two released versions are needed for this page, and there " + ("is one." if found else "is none.") + " The next `modelyard run` that ends with a release makes one.")
            return
        first, second = choose(found)
        if first == second:
            look.empty("That is twice the same version. Choose another one on one of the sides.")
            return
        scores(first, second)
        if not (first.run_id and second.run_id):
            look.empty("One of the two was registered by hand: neither its curves nor its answers are known.")
            return
        graphs = web.at_once(lambda: releases.ancestry(first.run_id), lambda: releases.ancestry(second.run_id))
        curves((first, second), graphs)
        samples((first, second), graphs)


def choose(found: list[releases.Version]) -> tuple[releases.Version, releases.Version]:
    """A champion and the newest other version of the same model, until somebody chooses; the address says which."""
    by_uri = {version.uri: version for version in found}
    newest = max((version for version in found[1:]), key=lambda version: (version.model == found[0].model, version.created))
    chosen = []
    for place, (column, default) in enumerate(zip(st.columns(2), (found[0], newest), strict=True)):
        name = ("first", "second")[place]
        asked = st.query_params.get(name, default.uri)
        with column:
            uri = st.selectbox(f"{name.capitalize()} model", list(by_uri), index=list(by_uri).index(asked if asked in by_uri else default.uri), format_func=lambda uri: by_uri[uri].label)
        st.query_params[name] = uri
        chosen.append(by_uri[uri])
    return chosen[0], chosen[1]


# ---------------------------------------------------------------- scores


def scores(first: releases.Version, second: releases.Version) -> None:
    """Suite by suite: second less first, with its interval."""
    st.subheader("Scores", anchor=False)
    items = web.at_once(*(lambda run_id=version.run_id: releases.items(run_id) if run_id else None for version in (first, second)))
    suites = [suite for suite in first.scores if suite in second.scores]
    rows = [row(suite, first, second, *items) for suite in suites]
    if not rows:
        look.empty("No suite measured both of them.")
        return
    chart = [{"name": one["suite"], "value": one["difference"], "low": one["low"], "high": one["high"], "group": one["verdict"]} for one in rows]
    look.intervals(chart, VERDICTS, zero=True)
    st.caption("Second less first, with 95 % intervals: right of the line the second is better.")
    shown = [{"suite": one["suite"], "first": one["first"], "second": one["second"], "difference": f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]", "verdict": one["verdict"], "interval": one["how"]} for one in rows]
    look.table(shown, {"first": "%.3f", "second": "%.3f"})


def row(suite: str, first: releases.Version, second: releases.Version, a: Any, b: Any) -> dict[str, Any]:
    """One suite's difference; item by item where both kept their items."""
    mine, theirs = (version.scores[suite] for version in (first, second))
    found, how = difference(suite, a, b) or (unpaired_difference(*((float(score["score"]), float(score.get("stderr") or 0.0)) for score in (theirs, mine))), "not paired")
    verdict = VERDICTS[0 if found.low > 0 else 1 if found.high < 0 else 2]
    return {"suite": suite, "first": mine["score"], "second": theirs["score"], **found._asdict(), "verdict": verdict, "how": how}


def difference(suite: str, a: Any, b: Any) -> tuple[Difference, str] | None:
    """Second less first on the items that both have; None where there are none. The tests are those of the gate."""
    if a is None or b is None:
        return None
    both = a[a["suite"] == suite].merge(b[b["suite"] == suite], on="key", suffixes=("_first", "_second"))
    if both.empty:
        return None
    second, first = both["score_second"].tolist(), both["score_first"].tolist()
    found = paired_share_difference(second, first) if is_binary(first) and is_binary(second) else paired_difference(second, first, resamples=RESAMPLES)
    return found, f"paired, {len(both)} items"


# ---------------------------------------------------------------- curves and answers


def curves(pair: tuple[releases.Version, releases.Version], graphs: list[dict[str, releases.Node]]) -> None:
    """The curves of every stage that stands behind both."""
    st.subheader("Curves", anchor=False)
    stages = [{node.name: node.run_id for node in releases.of_model(graph).values() if node.run_id} for graph in graphs]
    both = [stage for stage in CURVES if stage in stages[0] and stage in stages[1]]
    found = web.at_once(*(lambda stage=stage: mlflow.curves(tuple(dict.fromkeys(side[stage] for side in stages)), CURVES[stage]) for stage in both))
    drawn = 0
    columns = st.columns(2)
    for stage, by_run in zip(both, found, strict=True):
        runs = {side[stage]: version for side, version in zip(stages, pair, strict=True)}  # one where both stand on the same run
        rows = [{"run": f"{stage} of {'both' if len(runs) == 1 else version.label}", "step": step, "value": value} for run_id, version in runs.items() for step, value in by_run.get(run_id, [])]
        if rows:
            with columns[drawn % 2], st.container(border=True):
                st.markdown(f"**{stage}**" + (", the same run behind both" if len(runs) == 1 else ""))
                look.lines(rows, CURVES[stage], look.PAIR[: len(runs)])
            drawn += 1
    if not drawn:
        look.empty("No stage that draws a curve stands behind both.")


def samples(pair: tuple[releases.Version, releases.Version], graphs: list[dict[str, releases.Node]]) -> None:
    """What the two answered to the same prompts, as their evaluations kept it."""
    st.subheader("Answers", anchor=False)
    told = web.at_once(*(lambda version=version, graph=graph: answers(version, graph) for version, graph in zip(pair, graphs, strict=True)))
    both = [prompt for prompt in told[0] if prompt in told[1]][:SAMPLES]
    if not both:
        look.empty("Their evaluations kept no answers to the same prompts. Ask both in Chat.")
    for prompt in both:
        with st.container(border=True):
            look.words(prompt)
            for column, version, answered in zip(st.columns(2), pair, told, strict=True):
                with column:
                    st.caption(look.plain(version.label))
                    look.words(answered[prompt])


def answers(version: releases.Version, graph: dict[str, releases.Node]) -> dict[str, str]:
    """By prompt, as the evaluation behind a release kept them for the role that was released."""
    released = mlflow.record(version.run_id)
    report = released and graph.get(released.inputs.get("report", ""))
    record = report and report.run_id and mlflow.record(report.run_id)
    if not released or not record:
        return {}
    role = f"[{released.config.get('role', '')}] "
    return {sample.prompt.removeprefix(role): sample.output for sample in record.samples if sample.prompt.startswith(role)}


if __name__ == "__main__":
    main()
