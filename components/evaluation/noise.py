"""The noise floor: how far a suite's score moves while the model stays the same.

One model is evaluated as configured, and again with another seed (other worked examples where a task draws them), another batch size (other rounding), and
the rows of the benchmarks in another order (other neighbours in a batch, other examples where a task takes the first ones). Given models of the same recipe
trained anew, they count as well: then the floor is that of the recipe and not of one model.

    run(NoiseConfig(), evals, "policy", model, benchmarks, tokens, out, emit=print, seed=1234)      # leaves noise.json

Each is varied alone, so the variances of the kinds add up. The gate widens every interval by the floor of both models.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from components.schema.evaluation import EvalConfig
from components.schema.gate import NoiseConfig, NoiseFloor, Spread
from components.schema.records import Outcome

Emit = Callable[[dict[str, Any]], None]
AS_CONFIGURED = "as configured"


class Variant(NamedTuple):
    """One evaluation: what is varied, and to what."""

    kind: str
    value: Any = None

    @property
    def name(self) -> str:
        return self.kind.replace(" ", "_") if self.value is None else f"{self.kind}-{self.value}"


class Seen(NamedTuple):
    """One suite in one evaluation."""

    score: float
    items: pd.Series
    """Score by (task, item, turn)."""


def run(
    config: NoiseConfig, evals: EvalConfig, role: str, model: Path, benchmarks: Path, tokens: Path, out: Path, emit: Emit, seed: int, retrained: Sequence[Path] = ()
) -> Outcome:
    """Evaluate again and again; a killed run goes on at the evaluation where it died. `retrained`: models of the same recipe with other seeds. Errors: the harness's."""
    plain = evals.model_copy(update={"probes": None, "perplexity_sequences": 1})
    variants = variants_of(config, plain, seed, len(retrained))
    seen: dict[Variant, dict[str, Seen]] = {}
    for number, variant in enumerate(variants):
        emit({"event": "progress", "step": number, "total": len(variants), "unit": "evaluations"})
        folder = out / "work" / variant.name
        folder.mkdir(parents=True, exist_ok=True)
        seen[variant] = _evaluated(variant, plain, role, retrained[variant.value] if variant.kind == "retraining" else model, benchmarks, tokens, folder, seed)
    floor = floor_of(seen).model_copy(update={"measured": {"role": role, "seed": seed, "evals": evals.model_dump(mode="json"), **config.model_dump(mode="json"), "retrained": len(retrained)}})
    (out / "noise.json").write_text(floor.model_dump_json(indent=1), encoding="utf-8")
    emit({"event": "progress", "step": len(variants), "total": len(variants), "unit": "evaluations"})
    return Outcome(figures={"suites": floor.model_dump(mode="json")["suites"], "evaluations": len(variants)})


def variants_of(config: NoiseConfig, evals: EvalConfig, seed: int, retrained: int = 0) -> list[Variant]:
    """Every evaluation, the one as configured first; a value that is the configured one anyway is left out."""
    others = {"seed": [s for s in config.seeds if s != seed], "batch_size": [b for b in config.batch_sizes if b != evals.batch_size], "order": config.orders}
    return [Variant(AS_CONFIGURED), *(Variant(kind, value) for kind, values in {**others, "retraining": range(retrained)}.items() for value in values)]


def floor_of(seen: Mapping[Variant, Mapping[str, Seen]]) -> NoiseFloor:
    """Spreads by suite. A kind's variance is over its evaluations and the one as configured; degrees of freedom are Welch's and Satterthwaite's."""
    first = seen[Variant(AS_CONFIGURED)]
    return NoiseFloor(suites={suite: _spread([(variant.kind, by_suite[suite]) for variant, by_suite in seen.items()], first[suite]) for suite in first})


def shuffled(benchmarks: Path, to: Path, seed: int) -> Path:
    """A copy of a folder of benchmarks, the rows of every Parquet and JSON-lines file in another order."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(benchmarks, to)
    for file in sorted(to.rglob("*")):
        rng = np.random.default_rng(seed)
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            file.unlink()  # a copy of a read-only file is read-only
            pq.write_table(table.take(pa.array(rng.permutation(len(table)))), file)
        elif file.suffix == ".jsonl":
            lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            file.unlink()
            file.write_text("".join(lines[i] + "\n" for i in rng.permutation(len(lines))), encoding="utf-8")
    return to


def _evaluated(variant: Variant, evals: EvalConfig, role: str, model: Path, benchmarks: Path, tokens: Path, folder: Path, seed: int) -> dict[str, Seen]:
    """One evaluation; read again where it was done before."""
    from components.evaluation import harness

    kept = folder / "scores.json"
    if not kept.is_file():
        if variant.kind == "batch_size":
            evals = evals.model_copy(update={"batch_size": variant.value})
        if variant.kind == "order":
            benchmarks = shuffled(benchmarks, folder / "benchmarks", variant.value)
        outcome = harness.run(evals, {role: model}, benchmarks, tokens, folder, lambda event: None, variant.value if variant.kind == "seed" else seed)
        shutil.rmtree(folder / "benchmarks", ignore_errors=True)
        temporary = kept.with_suffix(".tmp")
        temporary.write_text(json.dumps({suite: score["score"] for suite, score in outcome.figures["scores"][role].items()}))
        temporary.replace(kept)
    return {suite: Seen(score, _items(folder / "items" / role / f"{suite}.parquet")) for suite, score in json.loads(kept.read_text()).items()}


def _items(path: Path) -> pd.Series:
    frame = pd.read_parquet(path, columns=["task", "item", "id", "score"]).sort_values(["task", "item", "id"])
    frame["turn"] = frame.groupby(["task", "item"]).cumcount()
    return frame.set_index(["task", "item", "turn"])["score"]


def _spread(seen: Sequence[tuple[str, Seen]], first: Seen) -> Spread:
    by: dict[str, list[float]] = {}
    moved = pd.Series(False, index=first.items.index)
    for kind, one in seen[1:]:
        by.setdefault(kind, [first.score]).append(one.score)
        moved |= ~np.isclose(one.items.reindex(moved.index), first.items, equal_nan=True)
    variances = {kind: (float(np.var(np.array(scores) - first.score, ddof=1)), len(scores) - 1) for kind, scores in by.items()}  # equal scores give exactly 0
    total = sum(variance for variance, _ in variances.values())
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in variances.values()) if total else max((degrees for _, degrees in variances.values()), default=1)
    return Spread(
        spread=float(np.sqrt(total)),
        repeats=int(freedom) + 1,
        by={kind: float(np.sqrt(variance)) for kind, (variance, _) in variances.items()},
        flips=float(moved.mean()) if len(moved) else 0.0,
        scores=tuple(one.score for _, one in seen),
    )
