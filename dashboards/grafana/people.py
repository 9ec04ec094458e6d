"""The board People: who ranks how much, and whether they agree. Nobody is named in it."""

from __future__ import annotations

from dashboards.grafana.panels import Board, Panel, Row

CHOSEN = '{dataset=~"$dataset"}'

BOARD = Board(
    name="people",
    title="Modelyard: People",
    about="Rankings by people, as `modelyard feedback serve` counts them. No metric names a person.",
    variables={"dataset": "modelyard_feedback_items"},
    since="now-7d",
    rows=(
        Row("Now", (
            Panel("Rankings", "All that were ever sent, later changes included.", ((f"sum(modelyard_feedback_rankings_total{CHOSEN})", ""),), kind="number", width=6),
            Panel("Open items", "That fewer people have ranked than are wanted, of all that there are.",
                  ((f"sum(modelyard_feedback_items_open{CHOSEN})", "open"), (f"sum(modelyard_feedback_items{CHOSEN})", "in all")), kind="number", width=6),
            Panel("People", "Who have ranked something.", ((f"max(modelyard_feedback_annotators{CHOSEN})", ""),), kind="number", width=4),
            Panel("Agreement", "Krippendorff's alpha of the dataset that agrees least: 1 = all agree, 0 = as by chance. From 0.67 on conclusions are usual; below 0.4 the instructions are not clear.",
                  ((f"min(modelyard_feedback_alpha{CHOSEN})", ""),), kind="number", width=4, limits=(0.67, 0.4)),
            Panel("Gold questions", "Share of known pairs that people put in the right order, of the worst dataset.", ((f"min(modelyard_feedback_gold_accuracy{CHOSEN})", ""),), unit="percentunit", kind="number", width=4, limits=(0.8, 0.7)),
        )),
        Row("Over time", (
            Panel("Rankings an hour", "By dataset.", ((f"sum by (dataset) (increase(modelyard_feedback_rankings_total{CHOSEN}[1h]))", "{{dataset}}"),), kind="stacked", width=12),
            Panel("Open items", "A queue that stands still while people rank is one that is refilled.", ((f"modelyard_feedback_items_open{CHOSEN}", "{{dataset}}"),), width=12),
            Panel("Agreement", "Alpha; it moves little once there are some hundred rankings.", ((f"modelyard_feedback_alpha{CHOSEN}", "{{dataset}}"),), width=12, limits=(0.67, 0.4)),
            Panel("Gold questions", "Over all annotators. `modelyard feedback agreement` tells who misses them.", ((f"modelyard_feedback_gold_accuracy{CHOSEN}", "{{dataset}}"),), unit="percentunit", width=12, limits=(0.8, 0.7)),
        )),
    ),
)  # fmt: skip
