"""The data card: one page about a data version, for the person who decides whether to train on it.

It reads the counts and reports of every step beside it and writes index.html, which needs nothing else: no script, no font, no
request to anywhere. The same inputs give the same bytes, so the card is a stage like any other.

    index.html       card_text, card_checks: what the sections say; card_plots: how figures look; templates/: the page
    counts.json      the headline figures

Texts of documents are somebody else's: they are shown escaped, without control characters, under a policy that forbids
the browser to run or to fetch anything.

    python -m components card --config params.yaml --dataset tiny --out data/tiny/card
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.data import tally
from components.data.datacard import card_checks, card_inputs, card_plots, card_text
from components.data.datacard.card_inputs import TEXT_STEPS, Inputs
from components.data.datacard.card_plots import Section, count, part, percent, short, size
from components.schema.data import DataConfig

SECTIONS: tuple[Callable[[Inputs], Section | None], ...] = (
    card_text.funnel,
    card_text.domains,
    card_text.sources,
    card_text.languages,
    card_text.licences,
    card_text.dropped,
    card_text.changed,
    card_text.quality,
    card_text.lengths,
    card_checks.duplicates,
    card_checks.contamination,
    card_checks.tokenizer,
    card_checks.chats,
    card_checks.preferences,
    card_checks.settings,
    card_checks.version,
)
MUCH_UNKNOWN, MUCH_DROPPED, MUCH_OF_ONE, MANY_PASSES = 0.1, 0.5, 0.9, 4.0  # from where a figure is worth a look


def run(config: DataConfig, folder: Path) -> None:
    """Write index.html and counts.json from what stands beside `folder`. Errors: BadInput where nothing does."""
    inputs = card_inputs.read(config, folder.parent)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(page(inputs), encoding="utf-8", newline="\n")
    tally.write(folder, headline(inputs))


def page(inputs: Inputs) -> str:
    """The whole page."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    sections = [section for write in SECTIONS if (section := write(inputs))]
    text = environment.get_template("card.html").render(name=inputs.config.name, tiles=list(tiles(headline(inputs))), remarks=list(remarks(inputs)), sections=sections)
    return text.lstrip().translate(card_plots.CONTROL)  # names of sources, domains and reasons are not ours either


def headline(inputs: Inputs) -> dict[str, Any]:
    """The figures at the top. What no step has told is null."""
    first, last = inputs.counts.get("collect", {}), inputs.last or inputs.counts.get("documents", {})
    licences = last.get("by_licence", {})
    return {
        "documents": last.get("documents"),
        "bytes": last.get("bytes"),
        "collected_documents": first.get("documents"),
        "collected_bytes": first.get("bytes"),
        "kept_share_of_documents": round(part(last.get("documents", 0), first["documents"]), 6) if first else None,
        "kept_share_of_bytes": round(part(last.get("bytes", 0), first["bytes"]), 6) if first else None,
        "train_tokens": inputs.tokens.get("train_tokens"),
        "heldout_tokens": inputs.tokens.get("heldout_tokens"),
        "vocab_size": inputs.tokens.get("vocab_size"),
        "domains": _named(last.get("by_domain")),
        "languages": _named(last.get("by_language")),
        "licences": _named(licences),
        "unknown_licence_share_of_bytes": round(unknown_licence(inputs), 6) if licences else None,
        "contaminated_documents": inputs.of("decontaminate", "contaminated_documents"),
        "chats": inputs.counts.get("chats", {}).get("chats"),
        "pairs": inputs.counts.get("preferences", {}).get("pairs"),
    }


def _named(members: dict[str, Any] | None) -> int | None:
    """How many there are, the unknown aside."""
    return None if members is None else len(members.keys() - {card_text.UNKNOWN})


def unknown_licence(inputs: Inputs) -> float:
    """Share of the text whose licence nobody knows."""
    members = inputs.last.get("by_licence", {})
    return part(members.get(card_text.UNKNOWN, {}).get("bytes", 0), sum(entry["bytes"] for entry in members.values()))


def tiles(figures: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(figure, what it is, what it is of) for the top of the page."""
    shown: tuple[tuple[str, Callable[[float], str], str], ...] = (
        ("documents", count, "documents"),
        ("bytes", size, "text"),
        ("train_tokens", short, "training tokens"),
        ("heldout_tokens", short, "held-out tokens"),
        ("kept_share_of_documents", percent, "of the collected documents kept"),
        ("kept_share_of_bytes", percent, "of the collected text kept"),
        ("domains", count, "domains"),
        ("languages", count, "languages"),
        ("licences", count, "licences"),
        ("vocab_size", count, "tokens in the vocabulary"),
        ("chats", count, "chats"),
        ("pairs", count, "preference pairs"),
    )
    for key, form, what in shown:
        if figures[key]:
            yield form(figures[key]), what.removesuffix("s") if figures[key] == 1 else what, f"{figures[key]:,}"


def remarks(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """What a person should look at before training: (section, what)."""
    if (unknown := unknown_licence(inputs)) > MUCH_UNKNOWN:
        yield "licences", f"{percent(unknown)} of the text names no licence."
    for step in TEXT_STEPS:
        drops = inputs.of(step, "dropped", {})
        given = card_text.given(inputs.counts[step])["documents"] if drops else 0
        for reason, entry in drops.items():
            if entry["count"] > MUCH_DROPPED * given:
                yield "dropped", f"{step} dropped {percent(entry['count'] / given)} of its documents for one reason: {card_plots.words(reason)}."
    members = inputs.last.get("by_source", {})
    for name, entry in members.items():
        if len(members) > 1 and entry["bytes"] > MUCH_OF_ONE * inputs.last["bytes"]:
            yield "sources", f"{percent(entry['bytes'] / inputs.last['bytes'])} of the text is from one source, {name}."
    for domain in sorted(card_text.domain_tokens(inputs)):
        if (card_text.passes(inputs, domain) or 0) > MANY_PASSES:
            yield "domains", f"{domain} would be gone through {card_text.passes(inputs, domain):.1f} times in a training of as many tokens as there are."
    if number := inputs.of("decontaminate", "contaminated_documents"):
        yield "contamination", f"{count(number)} documents hold an item of a benchmark and are still there: scores on it may be too good."
    if inputs.counts.get("filter") and inputs.config.filter.pii == "keep":
        yield "changed", "Personal data was not looked for."
    if inputs.counts.get("dedup") and not (inputs.config.dedup.documents and inputs.config.dedup.near):
        yield "duplicates", "Not every kind of duplicate was looked for."
