"""The data card's sections about what was checked and what is built on the text: duplicates, contamination, tokenizer, chats, settings.

One function a section, as in card_text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from components.data.datacard import card_plots as plots
from components.data.datacard.card_inputs import Inputs
from components.data.datacard.card_plots import Block, Cell, Code, Excerpts, Note, Section, Table
from components.data.datacard.card_text import drops

EVERYTHING = "all"  # how the tokenizer's report calls the domains together
KINDS = {"bpe": "Byte-level BPE", "unigram": "Byte-level Unigram", "character": "Characters", "pretrained": "Taken as it was"}
RATES = {
    "bytes_per_token": ("bytes a token", plots.decimal),
    "tokens_per_word": ("tokens a word", plots.decimal),
    "tokens_per_number": ("tokens a number", plots.decimal),
    "coverage": ("characters whole", plots.percent),
    "lossless": ("come back exactly", plots.percent),
}
SHOWN_TOKENS = 60
TEASER_CHARACTERS = 200  # more than a line; the page cuts it where the line ends
CURVE_POINTS = 100


def duplicates(inputs: Inputs) -> Section | None:
    """The banding, the sizes of clusters, and the largest ones."""
    banding, told = inputs.of("dedup", "banding"), inputs.of("dedup", "clusters", {})
    blocks: list[Block] = list(_banding(banding)) if banding else []
    if told.get("sizes"):
        blocks.append(plots.histogram("Documents in a cluster", told["sizes"], "documents", of="clusters"))
    blocks += _clusters(inputs)
    if not blocks and not told:
        return None
    lead = "A cluster is a set of documents that are copies of each other, exact or near; one of each stays. "
    if told and not told["count"]:
        lead += "There is none."
    elif told:
        lead += f"{plots.count(told['count'])} clusters hold {plots.count(told['documents'])} documents; the largest holds {plots.count(told['largest'])}."
    return Section("duplicates", "Duplicates", lead, blocks)


def _banding(banding: Mapping[str, Any]) -> Iterator[Block]:
    bands, rows, threshold = banding["bands"], banding["rows"], banding["threshold"]
    points = [(s / CURVE_POINTS, chance(s / CURVE_POINTS, bands, rows)) for s in range(CURVE_POINTS + 1)]
    confirmed = ", and each candidate was confirmed by its whole signature" if banding.get("verify") else ", and candidates were not confirmed"
    yield Note(
        f"Near copies have a Jaccard similarity of {threshold:g} or more. Signatures of {banding['permutations']} hash functions are cut into {bands} bands of {rows} rows; "
        f"documents that agree in a whole band are candidates{confirmed}. A pair at the threshold is found with a chance of {plots.percent(chance(threshold, bands, rows))}."
    )
    yield plots.curve("Chance that a pair becomes a candidate", points, threshold, f"threshold {threshold:g}", ("Jaccard similarity", "chance"))


def chance(similarity: float, bands: int, rows: int) -> float:
    """That two signatures agree in at least one whole band (Indyk and Motwani 1998)."""
    return 1 - (1 - similarity**rows) ** bands


def _clusters(inputs: Inputs) -> Iterator[Block]:
    """One excerpt list a cluster, the largest first."""
    members: dict[int, list[Mapping[str, Any]]] = {}
    for row in inputs.clusters:
        members.setdefault(row["cluster"], []).append(row)
    if members:
        yield Note("The largest clusters, in each the document that stays first:")
    for rank, rows in sorted(members.items()):
        items = [(f"{row['domain']} · {row['source']} · {row['id']} · {_fate(row)}", plots.visible(row["excerpt"] or "")) for row in rows]
        more = rows[0]["size"] - len(rows)
        teaser = items[0][1][:TEASER_CHARACTERS]
        yield Excerpts(f"{rank + 1}. {plots.count(rows[0]['size'])} documents", [*items, *([(f"and {plots.count(more)} more", "")] if more else [])], teaser)


def _fate(row: Mapping[str, Any]) -> str:
    return "kept" if row["kept"] else f"{row['kind']} copy, similarity {row['similarity']:.2f}"


def contamination(inputs: Inputs) -> Section | None:
    """Documents and items of benchmarks that overlap, by domain."""
    matrix, items = inputs.of("decontaminate", "matrix", {}), inputs.counts.get("benchmarks", {})
    if not matrix and not items:
        return None
    options = inputs.config.decontaminate
    did = {"drop": "was left out", "mark": "stays and is marked", "report": "stays"}[options.action]
    lead = (
        f"A document in which at least {100 * options.min_overlap:g} % of the {options.ngram_words}-word sequences of a benchmark's item stand {did}. "
        "Generated text is made without the items and always stays."
    )
    blocks = list(_matrix(matrix, {"documents": "Documents that hold an item", "items": "Items that a document holds"}))
    if not matrix and "decontaminate" in inputs.counts:
        blocks.append(Note("No document overlaps with any item."))
    if table := _items(items, inputs.of("decontaminate", "benchmarks", {})):
        blocks.append(table)
    return Section("contamination", "Contamination", lead, blocks)


def _matrix(matrix: Mapping[str, Mapping[str, Mapping[str, int]]], captions: Mapping[str, str]) -> Iterator[Block]:
    """A table for each of the captions, by the key of what it counts."""
    benchmarks = sorted({name for row in matrix.values() for name in row})
    if not benchmarks:
        return
    for what, caption in captions.items():
        most = max((row.get(name, {}).get(what, 0) for row in matrix.values() for name in benchmarks), default=0)
        rows = [[Cell(group), *(plots.shade(row.get(name, {}).get(what, 0), most) for name in benchmarks)] for group, row in sorted(matrix.items())]
        yield Table(caption, ("from", *benchmarks), rows)


def _items(numbers: Mapping[str, Any], told: Mapping[str, Mapping[str, int]]) -> Table | None:
    """Items of each benchmark, and how many of them stand in the text."""
    if told:
        keys = {"items": "items", "cannot_be_told": "too short to be told", "contaminated_before": "found", "contaminated": "still there"}
        rows = [[Cell(name), *(plots.figure(entry.get(key)) for key in keys)] for name, entry in sorted(told.items())]
        return Table("Items of each benchmark", ("benchmark", *keys.values()), rows)
    rows = [[Cell(name), plots.figure(number)] for name, number in sorted(numbers.items()) if isinstance(number, int)]
    return Table("Items of each benchmark", ("benchmark", "items"), rows) if rows else None


def tokenizer(inputs: Inputs) -> Section | None:
    """How the tokenizer does on text it has not seen."""
    report = inputs.tokenizer
    heldout = report.get("heldout")
    if not heldout:
        return None
    against = report.get("yardstick", {})
    domains = [name for name in heldout if name != EVERYTHING]
    rows = [
        [Cell(name), *(plots.figure(heldout[name].get(rate), shown) for rate, (_, shown) in RATES.items()), plots.figure(against.get("ratio", {}).get(name), plots.decimal)]
        for name in ([*domains, EVERYTHING] if len(domains) > 1 else domains)
    ]
    blocks: list[Block] = [Table("On held-out documents", ("domain", *(column for column, _ in RATES.values()), "against the yardstick"), rows)]
    if against.get("what"):
        blocks.append(Note(f"The yardstick: {against['what']}. Above 1 means that our tokenizer needs fewer tokens for the same text."))
    for caption, tokens in (("The longest tokens", report.get("longest_tokens")), ("Tokens that the held-out text never needed", report.get("unused", {}).get("examples"))):
        if tokens:
            blocks.append(Excerpts(caption, [("", " ".join(_token(token) for token in tokens[:SHOWN_TOKENS]))]))
    lead = f"{KINDS[inputs.config.tokenizer.kind]}, {plots.count(report['vocab_size'])} tokens."
    if "unused" in report:
        lead += f" {plots.percent(report['unused']['share'])} of them were not needed by the held-out text."
    return Section("tokenizer", "Tokenizer", lead, blocks)


def _token(token: str) -> str:
    """A token with its spaces and line ends visible."""
    return plots.visible(token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍"))


def chats(inputs: Inputs) -> Section | None:
    """Chats for SFT."""
    return _conversations(inputs, "chats", "chats", "Chats", "Conversations for fine-tuning")


def preferences(inputs: Inputs) -> Section | None:
    """Pairs for the reward model and DPO."""
    return _conversations(inputs, "preferences", "pairs", "Preferences", "Pairs of answers, of which the first is preferred")


def _conversations(inputs: Inputs, step: str, unit: str, title: str, lead: str) -> Section | None:
    counts = inputs.counts.get(step, {})
    whole = counts.get(unit, 0)
    if not whole and not counts.get("dropped"):
        return None
    blocks: list[Block] = []
    for key, column in (("by_kind", "kind"), ("by_shape", "shape")):
        if members := counts.get(key):
            ranked = sorted(members.items(), key=lambda entry: (-entry[1], entry[0]))
            rows = [[Cell(plots.words(name) if key == "by_shape" else name), plots.figure(number), plots.bar(number, whole)] for name, number in ranked]
            blocks.append(Table(f"{title} by {column}", (column, unit, "of all"), rows))
    if reasons := counts.get("dropped"):
        blocks += drops(f"what {step} dropped", reasons, whole + sum(entry["count"] for entry in reasons.values()), unit)
    if changes := counts.get("changed"):
        blocks.append(Table(f"{title}: changes", ("what", "times"), [[Cell(plots.words(name)), plots.figure(number)] for name, number in changes.items()]))
    if matrix := counts.get("matrix"):
        blocks += _matrix(matrix, {"rows": f"{title} that hold an item of a benchmark", "items": f"{title}: items that were met"})
    sides = f": {plots.count(counts['train'])} to train on, {plots.count(counts['heldout'])} held out" if isinstance(counts.get("train"), int) else ""
    return Section(step, title, f"{lead}{sides}.", blocks)


def settings(inputs: Inputs) -> Section | None:
    """The configuration, whole: defaults too."""
    dump = inputs.config.model_dump(mode="json")
    for group in ("sources", "chats", "preferences"):
        dump[group] = [source.model_dump(mode="json", exclude_defaults=True) for source in getattr(inputs.config, group)]
    if inputs.pins:
        dump["pins"] = {group: dict(sorted(members.items())) for group, members in sorted(inputs.pins.items()) if members}
    text = yaml.safe_dump(dump, sort_keys=False, allow_unicode=True, width=100)
    return Section("settings", "Settings", "The data section of the recipe, with every default written out.", [Code("Settings as YAML", text, folded=True)])


def version(inputs: Inputs) -> Section | None:
    """How to have this data again."""
    name = inputs.config.name
    steps = " ".join(f"data/{name}/{step}" for step in ("documents", "tokens", "mix", "chats", "preferences", "tokenizer", "benchmarks"))
    newest = next((path for path in ("tokens/tokens.json", "documents/counts.json", "collect/counts.json") if path in inputs.digests), None)
    commands = [f"# the commits at which {newest} came and went", f"git log --oneline -S {inputs.digests[newest]} -- dvc.lock"] if newest else []
    commands += ["git checkout COMMIT", f"dvc pull {steps}"]
    blocks: list[Block] = [Code("Bring this version back", "\n".join(commands))]
    if inputs.digests:
        rows = [[Cell(f"data/{name}/{path}", "code"), Cell(md5, "code")] for path, md5 in sorted(inputs.digests.items())]
        blocks.append(Table("What this page was made from", ("file", "md5, as in dvc.lock"), rows, folded=True))
    return Section("version", "This version", "DVC keeps the data by the md5 of its bytes; the commit whose dvc.lock names them is its version.", blocks)
