"""What Prometheus reads at /metrics: how many rankings, what is open, how far people agree. Nobody's name is in it."""

from __future__ import annotations

import time
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from components.feedback.people import agreement, asking
from components.feedback.people.opinions import said
from components.feedback.people.store import DONE, Claim, Item, Revision, Store

EVERY_S = 15.0
_told: WeakKeyDictionary[Store, tuple[float, str]] = WeakKeyDictionary()  # agreement over many rankings takes a while, and who scrapes need not pay for it each time


def text(store: Store) -> str:
    """All figures in Prometheus' text format, at most EVERY_S old."""
    at, told = _told.get(store, (0.0, ""))
    if not told or time.monotonic() - at > EVERY_S:
        told = store.read(_text)
        _told[store] = (time.monotonic(), told)
    return told


def _text(session: Session) -> str:
    registry = CollectorRegistry()
    registry.register(_Figures(_figures(session)))
    return generate_latest(registry).decode()


class _Figures:
    """Figures as prometheus_client collects them."""

    def __init__(self, found: list[Metric]) -> None:
        self.found = found

    def collect(self) -> list[Metric]:
        return self.found


def _figures(session: Session) -> list[Metric]:
    total = CounterMetricFamily("modelyard_feedback_rankings", "Rankings that people sent, later changes included", labels=["dataset"])
    gauges = {
        name: GaugeMetricFamily(f"modelyard_feedback_{name}", what, labels=["dataset"])
        for name, what in {
            "items": "Questions, known ones not counted",
            "items_open": "Questions that still want people",
            "annotators": "People who ranked something",
            "alpha": "Krippendorff's alpha, ordinal, over pairs of answers",
            "gold_accuracy": "Share of known pairs in the right order",
        }.items()
    }
    for dataset in asking.summary(session):
        name = [dataset["name"]]
        sent = select(func.count()).select_from(Revision).join(Claim).join(Item).where(Item.dataset == dataset["name"], Revision.kind == "ranking")
        total.add_metric(name, session.scalar(sent) or 0)
        found = agreement.figures(said(session, dataset["name"]))
        items, open_ones = _items(session, dataset["name"])
        values = {"items": items, "items_open": open_ones, "annotators": found["annotators"], "alpha": found["alpha"], "gold_accuracy": found["gold"]["accuracy"]}
        for gauge, value in values.items():
            if value is not None:
                gauges[gauge].add_metric(name, value)
    return [total, *gauges.values()]


def _items(session: Session, dataset: str) -> tuple[int, int]:
    """Questions, and those that fewer people have ranked than are wanted."""
    ranked = select(func.count()).select_from(Claim).where(Claim.item_id == Item.id, Claim.state == DONE).correlate(Item).scalar_subquery()
    of_dataset = select(func.count()).select_from(Item).where(Item.dataset == dataset, ~Item.is_gold)
    return session.scalar(of_dataset) or 0, session.scalar(of_dataset.where(ranked < Item.overlap)) or 0
