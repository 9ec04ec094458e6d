"""Filter: which documents are worth learning from, and what of them must not be learnt.

    python -m components filter --config params.yaml --dataset tiny --out data/tiny/filter

In order, each only for what is left: the rules of the document's domain (rules.py), personal data (pii.py), toxicity (safety.py), and the quality score
(quality.py), whose parts stay with the document: columns perplexity, diversity, safety, quality. Histograms are of all documents that were
measured, dropped ones included, so a threshold can be chosen by looking at them. Examples of what was dropped have their personal
data replaced as the documents have.

Curriculum passes untouched and unmeasured. A document's verdict follows from its text, the options and the reference alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from components.data import engine, shards
from components.data.filtering import pii, quality, rules, safety
from components.data.tally import EXAMPLE_CHARACTERS, Tally, read, summed, write
from components.data.words import word_hashes
from components.schema.config import BadInput
from components.schema.data import CODE, CURRICULUM, DataConfig, FilterConfig

BATCH_BYTES = 2 * 2**20  # text that is judged at once
BINS = 20  # of a score's histogram
FAILED = "filtering_failed_with_"
COLUMNS = ("perplexity", "diversity", "safety", "quality")


def run(config: DataConfig, folder: Path) -> None:
    """Write the shards of what stays and counts.json. Errors: BadInput from the classifier or the reference domain."""
    options, source = config.filter, folder.parent / "clean"
    if options.classifier:
        safety.check_classifier(options.classifier)
    bytes_of = {domain: entry["bytes"] for domain, entry in read(source)["by_domain"].items()}
    domains = quality.reference_domains(options, bytes_of)
    with engine.workspace(folder, options.model_dump(mode="json"), source, safety.WORDLISTS) as work:
        reference = quality.prepare(domains, sum(bytes_of[d] for d in domains), shards.paths(source), work)
        told = {"options": options.model_dump(mode="json"), "reference": reference and str(reference)}
        tasks = [{"shard": str(path.absolute()), **told} for path in shards.paths(source)]
        results = engine.run(filter_shard, tasks, work / "filter", "filter")
        for i, shard in enumerate(engine.outputs(work / "filter", tasks)):
            engine.hand_over(shard, folder / f"{i:05d}.parquet")
        scale = quality.load(str(reference)).scale if reference else None
    write(folder, {**summed(results).plain(), "reference": scale and scale.told(), "bias": _bias(results)})


def _bias(results: list[dict[str, Any]]) -> dict[str, int]:
    return {key: sum(result["bias"][key] for result in results) for key in ("bias_pairs", "documents")}


def filter_shard(task: engine.Task, out: Path) -> dict[str, Any]:
    """One task: what stays of a shard's documents."""
    options, counts, bias = FilterConfig.model_validate(task["options"]), Tally(), Counter(bias_pairs=0, documents=0)
    reference = quality.load(task["reference"]) if task["reference"] else None
    with shards.Writer(out) as writer:
        for table in shards.read(Path(task["shard"])):
            for batch in _batches(table):
                kept = filter_table(batch, options, reference, counts, bias)
                counts.keep(kept)
                writer.write(kept)
    return {**counts.plain(), "bias": dict(bias)}


def _batches(table: pa.Table) -> Iterator[pa.Table]:
    """Slices of about BATCH_BYTES, that a batch's arrays stay small."""
    start = size = 0
    for i, bytes_of_row in enumerate(shards.text_bytes(table), start=1):
        size += bytes_of_row or 0
        if size >= BATCH_BYTES or i == table.num_rows:
            yield table.slice(start, i - start)
            start, size = i, 0


def filter_table(table: pa.Table, options: FilterConfig, reference: quality.Reference | None, counts: Tally, bias: Counter[str]) -> pa.Table:
    """The documents that stay, as they stay; everything is counted."""
    texts, domains = table["text"].to_pylist(), table["domain"].to_pylist()
    asked = [i for i, domain in enumerate(domains) if domain != CURRICULUM]
    verdict = _judged_safely([texts[i] for i in asked], [domains[i] for i in asked], options, reference)
    for what, count in sorted(verdict.changes.items()):
        counts.change(what, count)
    for name, edges in verdict.histograms.items():
        counts.measure(name, edges)
    bias.update(bias_pairs=int(verdict.bias_pairs.sum()), documents=int(np.count_nonzero(verdict.bias_pairs)))
    reasons: list[str | None] = [None] * len(texts)
    columns: dict[str, list[float | None]] = {name: [None] * len(texts) for name in COLUMNS}
    for k, i in enumerate(asked):
        texts[i], reasons[i] = verdict.texts[k], verdict.reasons[k]
        for name in COLUMNS:
            columns[name][i] = None if np.isnan(verdict.columns[name][k]) else float(verdict.columns[name][k])
    _count_drops(table, texts, reasons, options, counts)
    return shards.with_columns(table, text=texts, **columns).filter(pa.array([reason is None for reason in reasons], pa.bool_()))


def _count_drops(table: pa.Table, texts: list[str], reasons: list[str | None], options: FilterConfig, counts: Tally) -> None:
    sizes = shards.text_bytes(table)
    for i, reason in enumerate(reasons):
        if reason:
            shown = "(not shown)" if reason.startswith(FAILED) else texts[i][: 2 * EXAMPLE_CHARACTERS]
            if options.pii != "keep":
                shown = pii.replaced(shown, options.pii_kinds)[0]
            counts.drop(reason, f"{table['source'][i].as_py()}: {shown[:EXAMPLE_CHARACTERS]}", sizes[i] or 0)


# ---------------------------------------------------------------- judging


@dataclass
class Verdict:
    """What a batch of documents came to."""

    texts: list[str]
    """Per document: what is left of it"""
    reasons: list[str | None]
    """Per document: why it is dropped, None = it stays"""
    columns: dict[str, np.ndarray]
    """By name of COLUMNS, (documents,) float64; nan = not measured"""
    bias_pairs: np.ndarray
    """(documents,) int64"""
    changes: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, list[float]] = field(default_factory=dict)

    @property
    def alive(self) -> list[int]:
        return [i for i, reason in enumerate(self.reasons) if reason is None]


def _judged_safely(texts: list[str], domains: list[str], options: FilterConfig, reference: quality.Reference | None) -> Verdict:
    """A batch judged; where that fails, its documents one by one, and the poisoned one is dropped."""
    try:
        return judged(texts, domains, options, reference)
    except BadInput:
        raise
    except Exception as error:
        if len(texts) == 1:
            return _unmeasured(texts, [FAILED + type(error).__name__])
    return _joined([_judged_safely([text], [domain], options, reference) for text, domain in zip(texts, domains, strict=True)])


def judged(texts: Sequence[str], domains: Sequence[str], options: FilterConfig, reference: quality.Reference | None) -> Verdict:
    """Rules, personal data, toxicity and quality of a batch."""
    verdict = _unmeasured(texts, [None] * len(texts))
    halves = quality.halves(texts)  # of the text as the reference's sample saw it
    _apply_rules(verdict, domains, options)
    if options.pii != "keep":
        _apply_pii(verdict, options)
    _measure(verdict, domains, halves, options, reference)
    return verdict


def _unmeasured(texts: Sequence[str], reasons: list[str | None]) -> Verdict:
    return Verdict(list(texts), reasons, {name: np.full(len(texts), np.nan) for name in COLUMNS}, np.zeros(len(texts), np.int64))


def _joined(parts: list[Verdict]) -> Verdict:
    return Verdict(
        texts=[text for part in parts for text in part.texts],
        reasons=[reason for part in parts for reason in part.reasons],
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in COLUMNS},
        bias_pairs=np.concatenate([part.bias_pairs for part in parts]),
        changes=sum((part.changes for part in parts), Counter()),
        histograms={name: [edge for part in parts for edge in part.histograms.get(name, [])] for name in _HISTOGRAMS},
    )


def _apply_rules(verdict: Verdict, domains: Sequence[str], options: FilterConfig) -> None:
    for domain in dict.fromkeys(domains):
        which = [i for i in verdict.alive if domains[i] == domain]
        if not which or not options.rules.get(domain):
            continue
        found = rules.judge([verdict.texts[i] for i in which], options.rules[domain])
        verdict.changes.update({f"removed_{line}": count for line, count in found.removed_lines.items()})
        for k, i in enumerate(which):
            verdict.texts[i], verdict.reasons[i] = found.texts[k], found.reasons[k]


def _apply_pii(verdict: Verdict, options: FilterConfig) -> None:
    which = verdict.alive
    for i, suspects in zip(which, pii.suspects([verdict.texts[i] for i in which]), strict=True):
        text, found = pii.replaced(verdict.texts[i], [kind for kind in suspects if kind in options.pii_kinds])
        if found and options.pii == "drop":
            verdict.reasons[i] = f"contains_{next(iter(found))}"
        elif found:
            verdict.texts[i] = text
            verdict.changes.update({f"replaced_{kind}": count for kind, count in found.items()})


_HISTOGRAMS = ("toxicity", "perplexity_bits", *COLUMNS)


def _measure(verdict: Verdict, domains: Sequence[str], halves: np.ndarray, options: FilterConfig, reference: quality.Reference | None) -> None:
    """Scores of what is alive, and who goes for them."""
    alive = np.array(verdict.alive, np.int64)
    texts = [verdict.texts[i] for i in alive]
    words = word_hashes(texts)
    toxicity = safety.toxicity(words)
    if options.classifier:
        toxicity = np.maximum(toxicity, safety.classified(options.classifier, texts))
    prose = np.array([domains[i] != CODE for i in alive], bool)
    bits = np.where(prose, reference.bits_per_word(words, halves[alive]), np.nan) if reference else np.full(len(alive), np.nan)
    perplexity = np.where(prose, reference.scale.part(bits), np.nan) if reference else bits
    diversity = quality.diversity(words)
    score = quality.weighed(perplexity, diversity, 1 - toxicity, options.quality_weights)
    for name, values in zip(COLUMNS, (perplexity, diversity, 1 - toxicity, score), strict=True):
        verdict.columns[name][alive] = values
        verdict.histograms[name] = _edges(values)
    verdict.histograms |= {"toxicity": _edges(toxicity), "perplexity_bits": np.floor(bits[~np.isnan(bits)]).tolist()}
    verdict.bias_pairs[alive] = safety.bias_pairs(words)
    for k, i in enumerate(alive):
        if toxicity[k] > options.max_toxicity:
            verdict.reasons[i] = f"toxicity_above_{options.max_toxicity:g}"
        elif score[k] < options.min_quality:
            verdict.reasons[i] = f"quality_below_{options.min_quality:g}"


def _edges(scores: np.ndarray) -> list[float]:
    """The lower edge of each score's bin; 1 lies in the last."""
    return (np.minimum(np.floor(scores[~np.isnan(scores)] * BINS), BINS - 1) / BINS).tolist()
