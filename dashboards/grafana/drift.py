"""The board Drift: how far the prompts that are served have moved from those the model was trained on (components/serving/drift.py says how it is measured)."""

from __future__ import annotations

from dashboards.grafana.panels import Board, Panel, Row


def measure(name: str) -> str:
    return f'modelyard_serving_prompt_drift{{model=~"$model",measure="{name}"}}'


def above(name: str) -> tuple[tuple[str, str], ...]:
    """A measure and its limit."""
    return ((measure(name), "{{model}}"), (measure(f"{name}_limit"), "limit of {{model}}"))


def between(name: str) -> tuple[tuple[str, str], ...]:
    """A measure and its band."""
    return ((measure(name), "{{model}}"), (measure(f"{name}_least"), "least of {{model}}"), (measure(f"{name}_most"), "most of {{model}}"))


BOARD = Board(
    name="drift",
    title="Modelyard: Drift of prompts",
    about="The last 512 prompts that were served, beside the prompts of training. 99 of 100 windows of training's own prompts keep within the limits shown; what leaves them for long and clearly is no chance.",
    variables={"model": "modelyard_serving_prompt_drift"},
    since="now-24h",
    rows=(
        Row("At a glance", (
            Panel("Divergence, in limits", "The divergence divided by its limit: up to 1 is what chance gives, 2 for half an hour sets off the alert.",
                  ((f"max by (model) ({measure('jensen_shannon')} / on (instance, model) {measure('jensen_shannon_limit')})", "{{model}}"),), kind="number", limits=(1, 2)),
            Panel("Measures outside", "How many of the five left their band.", ((f"max by (model) ({measure('outside')})", "{{model}}"),), kind="number", limits=(1, 3)),
            Panel("Prompts in the window", "Fewer than 16 are not compared; 512 are kept.", ((f"max by (model) ({measure('window')})", "{{model}}"),), kind="number"),
        )),
        Row("Words", (
            Panel("Divergence of tokens", "Jensen-Shannon, in bits: 0 = the same mixture of tokens, 1 = no token in common.", above("jensen_shannon")),
            Panel("Tokens never seen", "Share of the prompts' tokens that no training prompt holds: another language, another subject, code.", above("unseen_share"), unit="percentunit"),
            Panel("Rare tokens", "Share of tokens that are among training's rarest, which together are 1 % of it.", above("rare_share"), unit="percentunit"),
        )),
        Row("Lengths", (
            Panel("Median prompt", "In tokens, template included.", between("length_p50"), width=12),
            Panel("Long prompt (p95)", "In tokens, template included.", between("length_p95"), width=12),
        )),
    ),
)  # fmt: skip
