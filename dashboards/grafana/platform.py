"""The board Platform: servers, runs, queue, slots, workers, releases, the canary and what all of it costs."""

from __future__ import annotations

from dashboards.grafana.panels import Board, Panel, Row

CHOSEN = '{deployment=~"$deployment"}'
CANARY = "a canary that has run"


def spent(metric: str) -> tuple[tuple[str, str], ...]:
    """A cost of finished stages over the last day, by stage."""
    return ((f"sum by (stage) (increase({metric}[24h]))", "{{stage}}"),)


BOARD = Board(
    name="platform",
    title="Modelyard: Platform",
    about="Servers, runs, queue, slots, workers, releases and cost, as the exporter asks the servers for them.",
    variables={"deployment": "modelyard_flow_runs_waiting"},
    since="now-24h",
    rows=(
        Row("Now", (
            Panel("Alerts", "Ours that fire.", (('count(ALERTS{alertstate="firing",alertname=~"Modelyard.*"}) or vector(0)', ""),), kind="number", width=4, limits=(1,)),
            Panel("Workers", "That take runs.", (("sum(modelyard_workers_online)", ""),), kind="number", width=4, limits=(1, 0.5)),
            Panel("Running", "Runs that are at work.", (('sum(modelyard_flow_runs{state="Running",deployment=~"$deployment"}) or vector(0)', ""),), kind="number", width=4),
            Panel("Waiting", "Runs that are due and have not begun.", ((f"sum(modelyard_flow_runs_waiting{CHOSEN}) or vector(0)", ""),), kind="number", width=4),
            Panel("Longest overdue", "How late the run is that has waited longest.", ((f"max(modelyard_flow_run_lateness_seconds{CHOSEN}) or vector(0)", ""),), unit="s", kind="number", width=4, limits=(600, 1800)),
            Panel("Waiting for approval", "Versions that wait for somebody's answer.", (("sum(modelyard_releases_waiting) or vector(0)", ""),), kind="number", width=4, limits=(1,)),
            Panel("Servers", "Whether each answered the exporter at its last look.", (("modelyard_up", "{{source}}"),), kind="states", width=12, limits=(1, 0.5)),
            Panel("Looked at", "How long ago each server was last read; it should be seconds.", (("time() - modelyard_looked_timestamp_seconds", "{{source}}"),), unit="s", width=12, limits=(60, 300)),
        )),
        Row("Runs", (
            Panel("By state", "Runs that are due and have not ended.", ((f"sum by (state) (modelyard_flow_runs{CHOSEN})", "{{state}}"),), kind="stacked"),
            Panel("Ended, an hour", "By how they ended. A run that crashes and is resumed ends twice.",
                  ((f"sum by (state) (increase(modelyard_flow_runs_ended_total{CHOSEN}[1h]))", "{{state}}"),), kind="stacked"),
            Panel("Overdue", "How late the oldest waiting run of each deployment is. Behind full slots runs wait, as they should.", ((f"modelyard_flow_run_lateness_seconds{CHOSEN}", "{{deployment}}"),), unit="s"),
            Panel("How long runs take", "Median and 95th percentile of the runs that ended within a day.",
                  ((f"histogram_quantile(0.5, sum by (deployment, le) (increase(modelyard_flow_run_seconds_bucket{CHOSEN}[24h])))", "{{deployment}} median"),
                   (f"histogram_quantile(0.95, sum by (deployment, le) (increase(modelyard_flow_run_seconds_bucket{CHOSEN}[24h])))", "{{deployment}} p95")), unit="s"),
            Panel("Longest running", "How long ago the oldest running run of each deployment began.", ((f"modelyard_flow_run_oldest_seconds{CHOSEN}", "{{deployment}}"),), unit="s"),
            Panel("The last run", "1 where it completed (or had nothing to do), 0 where it did not.", ((f"modelyard_last_run_ok{CHOSEN}", "{{deployment}}"),), kind="states", limits=(1, 0.5)),
        )),
        Row("Queue and slots", (
            Panel("Slots", "Taken, and how many there are, of every host and limit.", (("modelyard_slots_taken", "{{limit}} taken"), ("modelyard_slots", "{{limit}} in all"))),
            Panel("Runs waiting", "Due and not begun, by deployment.", ((f"modelyard_flow_runs_waiting{CHOSEN}", "{{deployment}}"),), kind="stacked"),
            Panel("Workers heard of", "How long ago each worker said that it lives.", (("modelyard_worker_heartbeat_age_seconds", "{{worker}}"),), unit="s", limits=(60, 180)),
        )),
        Row("Cost", (
            Panel("Cost of a day", "Of stages that finished within the last 24 hours, in the price table's currency.", spent("modelyard_stage_cost_total"), kind="stacked", width=6),
            Panel("Hours of a day", "That stages took.", spent("modelyard_stage_hours_total"), kind="stacked", width=6),
            Panel("GPU hours of a day", "That GPUs were held.", spent("modelyard_stage_gpu_hours_total"), kind="stacked", width=6),
            Panel("Energy of a day", "In kWh; estimated where no counter may be read.", spent("modelyard_stage_kwh_total"), unit="kwatth", kind="stacked", width=6),
            Panel("Everything so far", "Cost, hours and energy of all stages that ever finished.",
                  (("sum(modelyard_stage_cost_total)", "cost"), ("sum(modelyard_stage_hours_total)", "hours"), ("sum(modelyard_stage_cpu_hours_total)", "core hours"), ("sum(modelyard_stage_kwh_total)", "kWh")), kind="number", width=24),
        )),
        Row("Releases, canary and disk", (
            Panel("Age of the champions", "Since each model's champion was released.", (("time() - modelyard_last_release_timestamp_seconds", "{{model}} {{version}}"),), unit="s", kind="bars", width=6),
            Panel("Last completed", "Since a run of each deployment completed.", (("time() - modelyard_last_completed_timestamp_seconds", "{{deployment}}"),), unit="s", kind="bars", width=6),
            Panel("Canary: changes", "Stages that came out differently in the last canary.", (("modelyard_canary_changes", "{{recipe}}"),), kind="number", width=4, limits=(1,), needs=CANARY),
            Panel("Canary: ran", "How long ago.", (("time() - modelyard_canary_timestamp_seconds", "{{recipe}}"),), unit="s", kind="number", width=4, limits=(100_000, 130_000), needs=CANARY),
            Panel("Canary: took", "Its whole line.", (("modelyard_canary_seconds", "{{recipe}}"),), unit="s", kind="number", width=4, needs=CANARY),
            Panel("Free on the disk", "Of MODELYARD_HOME.", (("modelyard_home_free_bytes / modelyard_home_size_bytes", "{{instance}}"),), unit="percentunit", width=12, limits=(0.1, 0.05)),
            Panel("Not copied", "Finished stages that MODELYARD_STORE does not have yet.", (("modelyard_results_not_copied", "{{instance}}"),), width=12),
        )),
    ),
)  # fmt: skip
