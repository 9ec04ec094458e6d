"""The board Serving: how much is asked of the endpoint, how fast it answers, what goes wrong, and which version says what."""

from __future__ import annotations

from dashboards.grafana.panels import Board, Panel, Row

CHOSEN = '{model=~"$model"}'
ANSWERS = '{model=~"$model",route=~"chat|completions"}'  # without probes and scrapes
RATE = "[$__rate_interval]"


def quantiles(metric: str, which: str) -> tuple[tuple[str, str], ...]:
    """Three of a histogram's."""
    return tuple((f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{which}{RATE})))", name) for share, name in ((0.5, "median"), (0.95, "p95"), (0.99, "p99")))


BOARD = Board(
    name="serving",
    title="Modelyard: Serving",
    about="The endpoint that `modelyard serve` runs: load, latency, errors, arms and the version in service. Several endpoints add up.",
    variables={"model": "modelyard_serving_requests_total"},
    since="now-3h",
    rows=(
        Row("Now", (
            Panel("In service", "Model and version of each arm.", (("modelyard_serving_model_info", "{{arm}}: {{model}} {{version}}"),), kind="table", width=8),
            Panel("Requests a second", "To chat and completions.", ((f"sum(rate(modelyard_serving_requests_total{ANSWERS}{RATE}))", ""),), unit="reqps", kind="number", width=4),
            Panel("Errors", "Share of answers with a status of 500 or more, over five minutes.", (("max(modelyard:serving_error_share:rate5m)", ""),), unit="percentunit", kind="number", width=4, limits=(0.01, 0.02)),
            Panel("p95", "Of requests, over five minutes, in the slowest arm.", (("max(modelyard:serving_request_seconds:p95_5m)", ""),), unit="s", kind="number", width=4, limits=(5, 10)),
            Panel("At work and waiting", "Requests that are being answered, and those that have no place yet.", (("sum(modelyard_serving_running)", "at work"), ("sum(modelyard_serving_waiting)", "waiting")), kind="number", width=4),
        )),
        Row("Requests", (
            Panel("By status", "Answers of chat and completions a second.", ((f"sum by (status) (rate(modelyard_serving_requests_total{ANSWERS}{RATE}))", "{{status}}"),), unit="reqps", kind="stacked", width=6),
            Panel("By route", "Answers a second, probes and scrapes included.", ((f"sum by (route) (rate(modelyard_serving_requests_total{CHOSEN}{RATE}))", "{{route}}"),), unit="reqps", kind="stacked", width=6),
            Panel("Errors", "Share of answers with a status of 500 or more, of each arm.", (("modelyard:serving_error_share:rate5m", "{{model}} {{arm}}"),), unit="percentunit", width=6, limits=(0.02,)),
            Panel("Refused", "Requests a second that were not begun, by why: a limit, a key, what was asked for.", ((f"sum by (reason) (rate(modelyard_serving_refused_total{RATE}))", "{{reason}}"),), unit="reqps", width=6),
        )),
        Row("Latency", (
            Panel("Whole requests", "From the first byte read to the last one sent. A request takes as long as it asks for tokens.", quantiles("modelyard_serving_request_seconds", ANSWERS), unit="s"),
            Panel("First token", "What a reader waits for until something appears.", quantiles("modelyard_serving_first_token_seconds", CHOSEN), unit="s"),
            Panel("p95 of each arm", "The canary beside the main arm.", (("modelyard:serving_request_seconds:p95_5m", "{{model}} {{arm}}"), ("modelyard:serving_first_token_seconds:p95_5m", "first token {{model}} {{arm}}")), unit="s"),
        )),
        Row("Load", (
            Panel("Tokens a second", "Read and written.", ((f"sum by (kind) (rate(modelyard_serving_tokens_total{CHOSEN}{RATE}))", "{{kind}}"),), width=6),
            Panel("Running and waiting", "Requests that share a batch, and those that wait for a place in it.", (("sum by (arm) (modelyard_serving_running)", "{{arm}} running"), ("sum(modelyard_serving_waiting)", "waiting")), width=6),
            Panel("Requests of each arm", "How the traffic is split.", ((f"sum by (arm, version) (rate(modelyard_serving_requests_total{ANSWERS}{RATE}))", "{{arm}} {{version}}"),), unit="reqps", kind="stacked", width=6),
            Panel("Shadow", "Answers of the shadow arm a second, by what came of the comparison; dropped where it was behind.",
                  ((f"sum by (outcome) (rate(modelyard_serving_shadow_total{RATE}))", "{{outcome}}"),), unit="reqps", width=6, needs="`modelyard serve --shadow`"),
        )),
    ),
)  # fmt: skip
