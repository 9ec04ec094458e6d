"""The boards as files: what the builder writes is in the tree, fits Grafana's types and Prometheus' grammar, and asks for metrics that somebody gives and explains."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

pytest.importorskip("grafana_foundation_sdk", reason="pip install 'modelyard[dev]' brings grafana-foundation-sdk")

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.grafana.__main__ import BOARDS, FOLDER
from dashboards.grafana.panels import Board, Panel, rendered
from tests.infra.test_infra import program
from tests.monitoring.asking import plain

ROOT = Path(__file__).parents[2]
EACH = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)


@EACH
def test_the_file_of_a_board_is_what_the_builder_writes(board: Board) -> None:
    assert (FOLDER / f"{board.name}.json").read_text() == rendered(board), "run: python -m dashboards.grafana"


def test_no_file_of_a_board_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {board.name for board in BOARDS}


@EACH
def test_a_board_reads_back_through_grafanas_types_as_it_was_written(board: Board) -> None:
    register_default_plugins()
    given = json.loads(rendered(board))
    again = json.loads(json.dumps(Dashboard.from_json(given), cls=JSONEncoder))
    for panel in (*given["panels"], *again["panels"]):  # the SDK leaves out fields of a row that are empty, one way or the other
        panel.pop("panels", None)
    assert again == given


@EACH
def test_panels_fill_their_rows_and_none_lies_on_another(board: Board) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(rendered(board))["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


@EACH
def test_every_query_is_grammar_of_prometheus(board: Board, tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": plain(query)} for number, query in enumerate(query for panel in board.panels for query, _ in panel.queries)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": board.name, "rules": rules}]}))
    done = subprocess.run([program("promtool", "monitoring"), "check", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_on_a_board_is_explained() -> None:
    readme = (ROOT / "infra" / "prometheus" / "README.md").read_text()
    rules = "".join(path.read_text() for path in (ROOT / "infra" / "prometheus" / "rules").glob("*.yaml"))
    for board in BOARDS:
        for name in {name for panel in board.panels for query, _ in panel.queries for name in re.findall(r"modelyard[\w:]+", query)}:
            if ":" in name:
                assert f"record: {name}" in rules, f"{board.name} reads {name}, which no rule records"
            else:
                assert name.removesuffix("_bucket") in readme, f"{board.name} reads {name}, which infra/prometheus/README.md does not explain"


def test_a_panel_says_what_it_shows_and_labels_tell_its_series_apart() -> None:
    for board in BOARDS:
        for panel in board.panels:
            assert panel.about.endswith((".", "?")) and panel.title, panel
            assert panel.kind in ("number", "bars", "table") or all(legend for _, legend in panel.queries), panel.title


def test_limits_colour_what_is_bad_red_on_either_side() -> None:
    def steps(limits: tuple[float, ...]) -> list[tuple[float | None, str]]:
        board = Board("b", "B", "About.", ())
        made = rendered(Board("b", "B", "About.", (type(BOARDS[0].rows[0])("R", (Panel("P", "A.", (("up", ""),), kind="number", limits=limits),)),)))
        assert board.panels == ()
        return [(step["value"], step["color"]) for step in json.loads(made)["panels"][1]["fieldConfig"]["defaults"]["thresholds"]["steps"]]

    assert steps((1, 2)) == [(None, "green"), (1, "orange"), (2, "red")]
    assert steps((0.67, 0.4)) == [(None, "red"), (0.4, "orange"), (0.67, "green")]
    assert steps((1,)) == [(None, "green"), (1, "red")]
