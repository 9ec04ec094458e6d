"""The data card's sections about the text itself: what was read, what is left of it, and what was done to it.

One function a section, from the counts of the steps to blocks, or None where the steps had nothing to say. A figure on the
page is a figure of counts.json, or a sum or a share of some.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from components.data.datacard import card_plots as plots
from components.data.datacard.card_inputs import TEXT_STEPS, Inputs
from components.data.datacard.card_plots import Block, Cell, Excerpts, Note, Section, Stack, Table

DID = {"collect": "collected", "clean": "cleaned", "filter": "filtered", "dedup": "without duplicates", "decontaminate": "without benchmark items"}
MOST_ROWS = 40  # of a table; what is left is one row
UNKNOWN = "unknown"
BIN = 0.05  # of a score's histogram


def funnel(inputs: Inputs) -> Section | None:
    """Documents and bytes after each step."""
    stages = [(DID[step], inputs.counts[step]) for step in TEXT_STEPS if inputs.counts.get(step)]
    if not stages:
        return None
    first, held = stages[0][1], given(stages[0][1])
    rows = [("in the sources", held), *stages] if held["documents"] > first["documents"] else list(stages)
    rows += [(name, side) for name, key in (("to train on", "train"), ("held out", "heldout")) if (side := inputs.side(key)).get("documents")]
    cells = [_sized(name, counts, rows[0][1]["documents"], rows[0][1]["bytes"]) for name, counts in rows]
    blocks: list[Block] = [Table("What is left after each step", ("after", "documents", "of the first", "text", "of the first"), cells)]
    return Section("funnel", "From collected to kept", "Each step reads what the one before it left.", [*blocks, *_by_domain(stages)])


def _by_domain(stages: list[tuple[str, dict[str, Any]]]) -> Iterator[Block]:
    """Where each domain lost documents; nothing where there is one domain."""
    members = [(name, counts["by_domain"]) for name, counts in stages if counts.get("by_domain")]
    domains = sorted({domain for _, by_domain in members for domain in by_domain})
    if len(domains) < 2:
        return
    numbers = {domain: [by_domain.get(domain, {}).get("documents", 0) for _, by_domain in members] for domain in domains}
    rows = [[Cell(domain), *map(plots.figure, row), plots.bar(row[-1], row[0])] for domain, row in numbers.items()]
    yield Table("Documents of each domain after each step", ("domain", *(name for name, _ in members), "kept"), rows)


def given(counts: Mapping[str, Any]) -> dict[str, int]:
    """What a step was given: what it kept and what it dropped."""
    drops = counts.get("dropped", {}).values()
    return {key: counts[key] + sum(drop.get(of, 0) for drop in drops) for key, of in (("documents", "count"), ("bytes", "bytes"))}


def domains(inputs: Inputs) -> Section | None:
    """Size of each domain, and the planned mixture against it."""
    members = inputs.last.get("by_domain", {})
    if not members:
        return None
    tokens = domain_tokens(inputs)
    whole, all_tokens = sum(entry["bytes"] for entry in members.values()), sum(tokens.values())
    columns = ("domain", "documents", "text", "of the text", *(("training tokens", "of the tokens", "bytes a token") if tokens else ()))
    rows = []
    for name, entry in _largest(members):
        row = [Cell(name), plots.figure(entry["documents"]), plots.figure(entry["bytes"], plots.size), plots.bar(entry["bytes"], whole)]
        if tokens:
            row += [plots.figure(tokens.get(name, 0)), plots.bar(tokens.get(name, 0), all_tokens), plots.figure(_bytes_a_token(inputs, name))]
        rows.append(row)
    lead = "Kinds of text, and how much of training each will have."
    return Section("domains", "Domains and mixture", lead, [Table("Size of each domain", columns, rows), *_mixture(inputs, tokens)])


def domain_tokens(inputs: Inputs) -> dict[str, int]:
    """Training tokens by domain."""
    return {name: entry["train_tokens"] for name, entry in inputs.tokens.get("domains", {}).items()}


def _bytes_a_token(inputs: Inputs, domain: str) -> float | None:
    entry = inputs.tokens.get("domains", {}).get(domain, {})
    return entry["train_bytes"] / entry["train_tokens"] if entry.get("train_tokens") else None


def _mixture(inputs: Inputs, tokens: Mapping[str, int]) -> Iterator[Block]:
    phases, members = inputs.mix.get("phases"), inputs.mix.get("domains", {})
    if not phases or not tokens:
        return
    total, names = sum(tokens.values()), sorted(tokens)
    natural = {name: plots.part(tokens[name], total) for name in names}
    shown = [("as it is there", natural), *((_phase_name(i, phases), phase["probabilities"]) for i, phase in enumerate(phases))]
    yield Stack("Share of the training tokens", names, shown)
    rows = [
        [
            Cell(name),
            *(plots.figure(shares.get(name, 0), plots.percent) for _, shares in shown),
            plots.figure(passes(inputs, name), plots.decimal),
            plots.figure(members.get(name, {}).get("holds_up_to_tokens")),
        ]
        for name in names
    ]
    yield Table("Planned mixture", ("domain", *(name for name, _ in shown), "passes", "holds up to"), rows)
    if limit := inputs.mix.get("holds_up_to_tokens"):
        yield Note(
            "Passes: how often a domain is gone through in a training of as many tokens as all domains have together. Holds up to: the training tokens up to "
            f"which the domain is gone through {inputs.mix['max_epochs']:g} times at most. In a training of more than {plots.count(limit)} tokens, domains that have "
            "reached this cap give way to the others."
        )


def passes(inputs: Inputs, domain: str) -> float | None:
    """How often a domain is gone through in a training of as many tokens as all domains have together."""
    tokens = domain_tokens(inputs)
    share = inputs.mix.get("domains", {}).get(domain, {}).get("share")
    return None if share is None or not tokens.get(domain) else share * sum(tokens.values()) / tokens[domain]


def _phase_name(i: int, phases: list[dict[str, Any]]) -> str:
    start = phases[i - 1]["until"] if i else 0
    return "planned" if len(phases) == 1 else f"planned, {100 * start:g} to {100 * phases[i]['until']:g} % of training"


def sources(inputs: Inputs) -> Section | None:
    """Where the text came from, as it was when it was read, and how much of each source is left."""
    taken, left = inputs.of("collect", "by_source", {}), inputs.last.get("by_source", {})
    if not taken:
        return None
    pins = inputs.pins.get("documents") or {}
    licences_of = {source.label: source.licence for source in inputs.config.sources}
    rows = [
        [
            Cell(name),
            Cell(pins.get(name, "–")),
            Cell(licences_of.get(name) or "–"),
            plots.figure(entry["documents"]),
            plots.figure(entry["bytes"], plots.size),
            plots.bar(left.get(name, {}).get("bytes", 0), entry["bytes"]),
        ]
        for name, entry in _largest(taken)
    ]
    columns = ("source", "version", "licence it was given", "documents", "text", "kept")
    return Section("sources", "Sources", "What was read. A version is the source's own, or a hash of its files.", [Table("Sources", columns, rows)])


def languages(inputs: Inputs) -> Section | None:
    """Languages by ISO 639-1, programming languages by name."""
    return _group(inputs, "language", "languages", "Languages", "As identified from the text; programming languages by file name.")


def licences(inputs: Inputs) -> Section | None:
    """Licences, the unknown among them."""
    members = inputs.last.get("by_licence", {})
    unknown, whole = (sum(e["bytes"] for name, e in members.items() if name == UNKNOWN or what == "all") for what in ("unknown", "all"))
    lead = f"{plots.percent(plots.part(unknown, whole))} of the text names no licence." if unknown else "Every document names its licence."
    return _group(inputs, "licence", "licences", "Licences", lead)


def _group(inputs: Inputs, group: str, id: str, title: str, lead: str) -> Section | None:
    members = inputs.last.get(f"by_{group}", {})
    if not members:
        return None
    documents, whole = (sum(entry[key] for entry in members.values()) for key in ("documents", "bytes"))
    ranked = _largest(members)
    rows = [_sized(name, entry, documents, whole) for name, entry in ranked[:MOST_ROWS]]
    if rest := ranked[MOST_ROWS:]:
        rows.append(_sized(f"{len(rest)} others", {key: sum(entry[key] for _, entry in rest) for key in ("documents", "bytes")}, documents, whole))
    return Section(id, title, lead, [Table(title, (group, "documents", "of all", "text", "of all"), rows)])


def _sized(name: str, entry: Mapping[str, int], documents: int, whole: int) -> list[Cell]:
    mark = "warn" if name == UNKNOWN else "text"
    shares = plots.bar(entry["documents"], documents), plots.bar(entry["bytes"], whole)
    return [Cell(name, mark), plots.figure(entry["documents"]), shares[0], plots.figure(entry["bytes"], plots.size), shares[1]]


def _largest(members: Mapping[str, Any], key: str = "bytes") -> list[tuple[str, Any]]:
    """Members by size, the largest first; names decide between equals."""
    return sorted(members.items(), key=lambda item: (-item[1].get(key, 0), item[0]))


def dropped(inputs: Inputs) -> Section | None:
    """Reasons by step, with examples."""
    blocks: list[Block] = []
    for step in TEXT_STEPS:
        if reasons := inputs.of(step, "dropped"):
            blocks += drops(f"what {step} dropped", reasons, given(inputs.counts[step])["documents"], "documents")
    if not blocks:
        return None
    lead = "A document is dropped at the first reason found. The share is of what the step was given. Examples are the beginnings of texts."
    return Section("dropped", "What was dropped, and why", lead, blocks)


def drops(caption: str, reasons: Mapping[str, Any], whole: int, what: str) -> Iterator[Block]:
    ranked = _largest(reasons, "count")
    sized = any("bytes" in entry for _, entry in ranked)
    rows = [
        [Cell(plots.words(reason)), plots.figure(entry["count"]), plots.bar(entry["count"], whole), *([plots.figure(entry.get("bytes", 0), plots.size)] if sized else [])]
        for reason, entry in ranked
    ]
    yield Table(caption.capitalize(), ("reason", what, "of what it was given", *(("text",) if sized else ())), rows)
    examples = [(plots.words(reason), plots.visible(str(text))) for reason, entry in ranked for text in entry.get("examples", ())]
    if examples:
        yield Excerpts(f"Examples of {caption}", examples)


def changed(inputs: Inputs) -> Section | None:
    """What was done to texts that stay."""
    rows = [
        [Cell(step), Cell(plots.words(what)), plots.figure(number)] for step in TEXT_STEPS for what, number in _counted(inputs.of(step, "changed", {}))
    ]
    if not rows:
        return None
    lead = "Texts that stay are mended: lines taken out, personal data replaced by placeholders."
    return Section("changed", "What was changed", lead, [Table("Changes", ("step", "what", "times"), rows)])


def _counted(numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(numbers.items(), key=lambda item: (-item[1], item[0]))


def quality(inputs: Inputs) -> Section | None:
    """The quality score and its three parts."""
    histograms = inputs.of("filter", "histograms", {})
    told = {"quality": "Quality", "perplexity": "Perplexity part", "diversity": "Diversity part", "safety": "Safety part"}
    drawn: list[Block] = [
        plots.histogram(title, histograms[name], "score", shown=lambda edge: f"{edge:g}", step=BIN, within=(0, 1 - BIN)) for name, title in told.items() if histograms.get(name)
    ]
    if histograms.get("perplexity_bits"):
        drawn.append(plots.histogram("Bits a word, of which perplexity is made", histograms["perplexity_bits"], "bits", step=1))
    if not drawn:
        return None
    drawn += _learnt_from(inputs.of("filter", "reference"), inputs.of("filter", "bias", {}))
    weights = inputs.config.filter.quality_weights
    total = weights.perplexity + weights.diversity + weights.safety
    formula = " + ".join(f"{getattr(weights, name) / total:.2f} × {name}" for name in ("perplexity", "diversity", "safety"))
    least = inputs.config.filter.min_quality
    acted = f"Documents below {least:g} were dropped." if least else "It was measured only: no document was dropped for it."
    return Section("quality", "Quality", f"quality = {formula}. Each part lies between 0 and 1, and 1 is best. {acted}", drawn)


def _learnt_from(reference: Mapping[str, Any] | None, bias: Mapping[str, int]) -> Iterator[Block]:
    if reference:
        yield Note(
            f"Perplexity is that of an n-gram model of {plots.count(reference['documents'])} documents ({plots.count(reference['words'])} words) of the domain "
            f"{' and '.join(reference['domains'])}. Its part is 1 up to {reference['median_bits']:.1f} bits a word, which is the median of that domain itself, and halves with "
            f"every {reference['width_bits']:.1f} bits more."
        )
    if bias.get("documents"):
        times = f"{plots.count(bias['documents'])} documents name a group of people near a negative word, {plots.count(bias['bias_pairs'])} times in all."
        yield Note(f"{times} This is counted, and nothing is done about it.")


def lengths(inputs: Inputs) -> Section | None:
    """How long documents are."""
    drawn: list[Block] = []
    if bins := inputs.last.get("histograms", {}).get("document_bytes"):
        drawn.append(plots.histogram("Documents in bytes", bins, "bytes", shown=plots.binary))
    drawn += [plots.histogram(title, bins, "tokens") for title, bins in token_lengths(inputs)]
    return Section("lengths", "Lengths", "Bins double in width: each reaches from its edge to the next.", drawn) if drawn else None


def token_lengths(inputs: Inputs) -> Iterator[tuple[str, dict[str, int]]]:
    """Histograms of tokens in a training document: of all, and by domain where there are several."""
    if inputs.tokens.get("document_tokens"):
        yield "Training documents in tokens", inputs.tokens["document_tokens"]
    members = inputs.tokens.get("domains", {})
    if len(members) > 1:
        yield from ((f"{name}, in tokens", entry["document_tokens"]) for name, entry in sorted(members.items()) if entry.get("document_tokens"))
