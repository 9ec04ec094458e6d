"""What a board is made of, and how it becomes Grafana's JSON.

A board is rows of panels, a panel is a few queries and how to draw them. Everything about looks is decided here, once; the boards say only what is asked.
Queries name the Prometheus of the variable `datasource`, so a board works in whichever Grafana it is imported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Kind = Literal["lines", "stacked", "number", "bars", "table", "states"]
SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = {"number": 4, "bars": 7, "table": 7, "states": 5}  # of 8 otherwise, in Grafana's units of 30 pixels
WHOLE = 24  # Grafana's width of a board
GOOD, WARN, BAD = "green", "orange", "red"


@dataclass(frozen=True)
class Panel:
    """One picture: what it is called, what a reader should know about it, and what is asked."""

    title: str
    about: str
    queries: tuple[tuple[str, str], ...]
    """Each an expression and the legend of its series (labels in {{}})."""
    unit: str = "short"
    """One of Grafana's units: s, percentunit, bytes, watt, celsius, reqps, short ..."""
    kind: Kind = "lines"
    width: int = 8
    """Of 24."""
    limits: tuple[float, ...] = ()
    """Up to two values from which it is orange, then red; a falling pair means that little is bad."""
    needs: str | None = None
    """What must be there for it to show anything, where that is not everywhere the case."""
    logarithmic: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """A page of panels; `variables` are what a reader may narrow it by: a label, and the metric that knows its values."""

    name: str
    """Of the file, and part of the address."""
    title: str
    about: str
    rows: tuple[Row, ...]
    variables: dict[str, str] = field(default_factory=dict)
    since: str = "now-6h"

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for row in self.rows for panel in row.panels)


def rendered(board: Board) -> str:
    """The file of a board, as Grafana imports it."""
    made = dashboard.Dashboard(board.title).uid(f"modelyard-{board.name}").description(board.about).tags(["modelyard"]).readonly()
    made = made.time(board.since, "now").refresh("30s").timezone("browser").tooltip(model.DashboardCursorSync.CROSSHAIR)
    made = made.link(dashboard.DashboardLink("Modelyard").type(model.DashboardLinkType.DASHBOARDS).tags(["modelyard"]).as_dropdown(True).include_vars(True).keep_time(True))
    made = made.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    for label, metric in board.variables.items():
        made = made.with_variable(_variable(label, metric))
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            made = made.with_panel(_drawn(panel))
    whole = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    for number, panel in enumerate(whole["panels"], 1):
        panel["id"] = number
    return json.dumps(whole, indent=1, sort_keys=True) + "\n"


def _variable(label: str, metric: str) -> dashboard.QueryVariable:
    made = dashboard.QueryVariable(label).label(label).datasource(SOURCE).query(f"label_values({metric}, {label})")
    return made.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC).multi(True).include_all(True).all_value(".*")


def _drawn(panel: Panel) -> Any:
    made = _KINDS[panel.kind](panel).title(panel.title).description(_told(panel)).datasource(SOURCE).unit(panel.unit)
    made = made.span(panel.width).height(HEIGHT.get(panel.kind, 8)).no_value("nothing yet")
    for number, (expression, legend) in enumerate(panel.queries):
        made = made.with_target(_query(expression, legend, "ABCDEFGH"[number], panel.kind))
    if panel.limits:
        made = made.thresholds(_thresholds(panel.limits))
    return made


def _told(panel: Panel) -> str:
    return f"{panel.about} Needs {panel.needs}." if panel.needs else panel.about


def _query(expression: str, legend: str, name: str, kind: Kind) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(name).datasource(SOURCE)
    if kind in ("number", "bars", "table"):
        return made.instant().format(PromQueryFormat.TABLE if kind == "table" else PromQueryFormat.TIME_SERIES)
    return made.range()


def _lines(panel: Panel) -> timeseries.Panel:
    made = timeseries.Panel().line_width(1).fill_opacity(30 if panel.kind == "stacked" else 5).show_points(looks.VisibilityMode.AUTO).span_nulls(300_000.0)
    made = made.tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING))
    made = made.legend(common.VizLegendOptions().display_mode(looks.LegendDisplayMode.LIST).placement(looks.LegendPlacement.BOTTOM).show_legend(True))
    if panel.kind == "stacked":
        made = made.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL).group("A"))
    if panel.logarithmic:
        made = made.scale_distribution(common.ScaleDistributionConfig().type(looks.ScaleDistribution.LOG).log(10))
    if panel.limits:
        made = made.thresholds_style(common.GraphThresholdsStyleConfig().mode(looks.GraphThresholdsStyleMode.DASHED))
    if panel.unit == "percentunit":
        made = made.axis_soft_min(0)
    return made


def _number(panel: Panel) -> stat.Panel:
    made = stat.Panel().graph_mode(looks.BigValueGraphMode.NONE).color_mode(looks.BigValueColorMode.VALUE)
    if len(panel.queries) == 1 and not panel.queries[0][1]:
        return made.text_mode(looks.BigValueTextMode.VALUE)
    return made.text_mode(looks.BigValueTextMode.VALUE_AND_NAME)


def _bars(panel: Panel) -> bargauge.Panel:
    made = bargauge.Panel().orientation(looks.VizOrientation.HORIZONTAL).display_mode(looks.BarGaugeDisplayMode.BASIC).min(0)
    made = made.value_mode(looks.BarGaugeValueMode.TEXT).name_placement(looks.BarGaugeNamePlacement.LEFT)
    return made.max(1) if panel.unit == "percentunit" else made


def _table(panel: Panel) -> table.Panel:
    hidden = {"Time": True, "instance": True, "job": True, "__name__": True}
    return table.Panel().inspect(False).with_transformation(model.DataTransformerConfig(id_val="organize", options={"excludeByName": hidden}))


def _states(panel: Panel) -> statetimeline.Panel:
    return statetimeline.Panel().fill_opacity(60).show_value(looks.VisibilityMode.NEVER)


def _thresholds(limits: tuple[float, ...]) -> dashboard.ThresholdsConfig:
    """From green over orange to red as the value rises; where the limits fall, the other way round."""
    rising = list(limits) == sorted(limits)
    colours = [GOOD, *((BAD,) if len(limits) == 1 else (WARN, BAD))]
    steps = list(zip([None, *sorted(limits)], colours if rising else colours[::-1], strict=True))
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps([model.Threshold(value=value, color=colour) for value, colour in steps])


_KINDS = {"lines": _lines, "stacked": _lines, "number": _number, "bars": _bars, "table": _table, "states": _states}
