"""Every panel of every board against a real Prometheus, which scrapes a real platform, a real endpoint and the real ranking page while they work."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("grafana_foundation_sdk", reason="pip install 'modelyard[dev]' brings grafana-foundation-sdk")

from dashboards.grafana.__main__ import BOARDS
from dashboards.grafana.panels import Panel
from tests.monitoring.asking import asked, plain
from tests.services.conftest import need
from tests.services.watched import Watched

pytestmark = [pytest.mark.services, pytest.mark.timeout(2400)]
PANELS = [pytest.param(panel, id=f"{board.name}: {panel.title}") for board in BOARDS for panel in board.panels]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, float, float]]:
    """The port of a Prometheus that has seen everything, and between when."""
    need("prometheus")
    begin = time.time()
    with Watched.begun(tmp_path_factory.mktemp("watched")) as yard:
        yard.run_a_line()
        yard.rank()
        yard.serve()
        time.sleep(5)
        yield yard.ports["prometheus"], begin, time.time()


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_shows_something(panel: Panel, watched: tuple[int, float, float]) -> None:
    port, begin, end = watched
    for query, legend in panel.queries:
        found = asked(port, plain(query, window="20s"), begin, end)
        values = [float(value) for series in found for _, value in series["values"]]
        assert any(math.isfinite(value) for value in values), f"{query} ({legend}) gave {len(found)} series and no number"


def test_what_is_legible_is_the_same_as_what_is_asked(watched: tuple[int, float, float]) -> None:
    """A legend's labels are there: a series called {{arm}} that has no arm would be drawn without a name."""
    import re

    port, begin, end = watched
    for board in BOARDS:
        for panel in board.panels:
            for query, legend in panel.queries:
                wanted = set(re.findall(r"\{\{(\w+)\}\}", legend))
                for series in asked(port, plain(query, window="20s"), begin, end):
                    assert wanted <= set(series["metric"]), f"{board.name}: {panel.title}: {legend} of {series['metric']}"


def test_no_alert_fires_about_a_platform_that_is_well(watched: tuple[int, float, float]) -> None:
    port, begin, end = watched
    fired = {series["metric"]["alertname"] for series in asked(port, 'ALERTS{alertstate="firing"}', begin, end)}
    assert fired <= {"ModelyardGoldMissed", "ModelyardDisagreement"}, fired
