"""Every released version: its aliases, what the gate said and why, who made it champion, and what it was made of, drawn."""

from __future__ import annotations

import json

import streamlit as st

from dashboards import look
from dashboards.services import mlflow, releases, web

SHOWN = 200
WAITS = "ask"  # the gate's word for: a person decides
GATE = {"promote": ":green-badge[promoted]", "hold": ":gray-badge[held]", WAITS: ":orange-badge[waits for a person]", "rolled_back": ":red-badge[rolled back]"}
FIGURES = ("heldout_loss_after", "bits_per_byte_after", "accuracy_after", "reward_gain")
SHAPES = {"stage": "box", "data": "cylinder", "weights": "folder"}


def main() -> None:
    with look.told():
        found = releases.versions()
        if not found:
            look.empty("Nothing was released yet. `modelyard run recipes/tiny.yaml` ends with a release.")
            return
        waiting = [version for version in found if version.tags.get("action") == WAITS]
        look.facts(("Models", len({version.model for version in found})), ("Versions", len(found)), ("Champions", sum(version.is_champion for version in found)), ("Wait for a person", len(waiting)))
        chosen = choose(found)
        table(found)
        st.divider()
        one(chosen)


def choose(found: list[releases.Version]) -> releases.Version:
    """Which one is shown in full; the address says it, so that it can be sent."""
    labels = {version.uri: version.label for version in found}
    asked = st.query_params.get("version")
    at = list(labels).index(asked) if asked in labels else 0
    uri = st.selectbox("Version", list(labels), index=at, format_func=labels.__getitem__)
    st.query_params["version"] = uri
    return next(version for version in found if version.uri == uri)


def table(found: list[releases.Version]) -> None:
    """The newest versions, champions first."""
    suites = list(dict.fromkeys(suite for version in found[:SHOWN] for suite in version.scores))[:4]
    rows = [
        {"model": version.model, "version": version.number, "is": ", ".join(version.aliases), "gate": version.tags.get("action", ""), **{suite: version.scores.get(suite, {}).get("score") for suite in suites}, "released": look.date(version.created), "page": version.page}
        for version in found[:SHOWN]
    ]  # fmt: skip
    look.table(rows, dict.fromkeys(suites, "%.3f"), height=min(320, 38 + 36 * len(rows)))
    if len(found) > SHOWN:
        st.caption(f"Champions and the newest: {SHOWN} of {len(found)} versions.")


def one(version: releases.Version) -> None:
    """One version in full."""
    st.subheader(look.plain(version.label), anchor=False)
    st.markdown(f"{GATE.get(version.tags.get('action', ''), ':gray-badge[never came to the gate]')} {look.plain(version.tags.get('reason', ''))}")
    settled = [(word, version.tags.get(f"{word}_by"), version.tags.get(f"{word}_why", "")) for word in ("settled", "rolled_back")]
    for word, who, why in settled:
        if who:
            st.markdown(f"{word.replace('_', ' ').capitalize()} by **{look.plain(who)}**{': ' + look.plain(why) if why else ''}")
    decision, moves, nodes = web.at_once(lambda: releases.decision(version), lambda: releases.moves(version.model), lambda: releases.ancestry(version.run_id) if version.run_id else {})
    left, right = st.columns([2, 3])
    with left:
        compared(decision)
        history(moves)
        settling = ("approve", "reject") if version.tags.get("action") == WAITS else ()
        words = (f"modelyard {word} {version.uri}" for word in (*settling, "lineage", "reproduce", "chat", "serve"))
        st.code("\n".join(words), language="bash")
        st.link_button("In MLflow", version.page, icon=":material/open_in_new:")
    with right:
        st.markdown("**What it was made of**")
        lineage(nodes)


def compared(decision: dict) -> None:
    """What the gate saw, suite by suite."""
    rows = [{"suite": one["suite"], "this": one["challenger"], "champion": one["champion"], "difference": _interval(one), "verdict": one["verdict"]} for one in decision.get("comparisons", [])]
    if rows:
        st.markdown("**What the gate compared**")
        look.table(rows, {"this": "%.3f", "champion": "%.3f"})


def _interval(row: dict) -> str:
    if row.get("difference") is None:
        return ""
    return f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]" if row.get("low") is not None else f"{row['difference']:+.3f}"


def history(moves: list[dict[str, str]]) -> None:
    """Who was champion when, and by whose word."""
    if moves:
        st.markdown("**Champions**")
        look.table([{"since (UTC)": f"{move['at'][:10]} {move['at'][11:16].replace('-', ':')}", "version": move["version"], "by": move["who"], "why": move.get("why", "")} for move in moves])


def lineage(nodes: dict[str, releases.Node]) -> None:
    """The graph, from data at the top to the release at the bottom, and the same as a table."""
    if not nodes:
        look.empty("It was registered by hand: no run is known that made it.")
        return
    st.graphviz_chart(dot(nodes), width="stretch")
    st.caption("Coloured: what the model was made of. White, with dashed lines: what measured and released it.")
    with st.expander("As a table"):
        rows = [{"what": node.name, "kind": node.kind, "identity": node.identity[:16], "from": ", ".join(node.inputs), "page": mlflow.run_page(node.run_id) if node.run_id else None} for node in nodes.values()]
        look.table(rows)


def dot(nodes: dict[str, releases.Node]) -> str:
    """The graph in Graphviz's language; names are JSON strings, which it reads as they are."""
    made_of = releases.of_model(nodes)
    lines = ['digraph { graph [rankdir=TB, bgcolor="transparent", nodesep=0.15, ranksep=0.3]', 'node [fontname="sans-serif", fontsize=11, style="filled,rounded", color="#8a93a0", fontcolor="#1c2733", margin="0.12,0.06", height=0.3]', 'edge [color="#8a93a0", arrowsize=0.6]']
    for identity, node in nodes.items():
        figure = next((f"\n{name.removesuffix('_after').replace('_', ' ')} {node.figures[name]:.3f}" for name in FIGURES if name in node.figures), "")
        fill = "#ffffff" if identity not in made_of else "#eaf6ef" if node.kind == "data" else "#dfe9fb"
        lines.append(f"{json.dumps(identity)} [label={json.dumps(node.name + figure)}, shape={SHAPES[node.kind]}, fillcolor={json.dumps(fill)}]")
        lines += [f"{json.dumps(given)} -> {json.dumps(identity)} [style={'solid' if identity in made_of else 'dashed'}]" for given in node.inputs.values()]
    return "\n".join([*lines, "}"])


if __name__ == "__main__":
    main()
