"""Clean: mend what is broken in a text before anything judges it, and tell its language.

    python -m components clean --config params.yaml --dataset tiny --out data/tiny/clean

In order: what mend.py mends (mojibake, line ends, invisible characters, Unicode form, boilerplate lines); language (language.py), of which only
those asked for stay; and, for classic bag-of-words uses only, lower-casing and removal of stop words. The last two are off: a language model
learns to write what it reads, and one that has read neither capitals nor "the" writes neither.

Curriculum passes untouched, its language "en". Source code keeps the language it came with, is not asked for a natural one, and loses no lines
or words.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.data import engine, shards
from components.data.cleaning import language, mend
from components.data.cleaning.stopwords import STOP_WORDS
from components.data.tally import EXAMPLE_CHARACTERS, Tally, summed, write
from components.schema.config import BadInput
from components.schema.data import CODE, CURRICULUM, CleanConfig, DataConfig


def run(config: DataConfig, folder: Path) -> None:
    """Write the cleaned shards of collect and counts.json. Errors: BadInput where a language is asked for that cannot be told."""
    options, source = config.clean, folder.parent / "collect"
    _check(options)
    tasks = [{"shard": str(path.absolute()), "options": options.model_dump(mode="json")} for path in shards.paths(source)]
    with engine.workspace(folder, options.model_dump(mode="json"), source) as work:
        counts = summed(engine.run(clean_shard, tasks, work, "clean"))
        for i, shard in enumerate(engine.outputs(work, tasks)):
            engine.hand_over(shard, folder / f"{i:05d}.parquet")
    write(folder, counts.plain())


def _check(options: CleanConfig) -> None:
    if unknown := sorted(set(options.languages) - set(language.languages())) if options.languages else []:
        raise BadInput(
            f"clean.languages: {unknown} are no languages that can be told here, so every document would be dropped. "
            f"Use codes of ISO 639-1, of these: {' '.join(language.languages())}"
        )


def clean_shard(task: engine.Task, out: Path) -> dict[str, Any]:
    """One task: the cleaned documents of a shard."""
    options, counts = CleanConfig.model_validate(task["options"]), Tally()
    with shards.Writer(out) as writer:
        for table in shards.read(Path(task["shard"])):
            cleaned = clean_table(table, options, counts)
            counts.keep(cleaned)
            writer.write(cleaned)
    return counts.plain()


def clean_table(table: pa.Table, options: CleanConfig, counts: Tally) -> pa.Table:
    """The documents that stay, cleaned; what was done and dropped is counted."""
    before, domains, languages = (table[name].to_pylist() for name in ("text", "domain", "language"))
    texts, reasons = _mended(before, domains, options, counts)
    prose = [i for i, domain in enumerate(domains) if domain not in (CODE, CURRICULUM) and not reasons[i]]
    for i, (code, probability) in zip(prose, language.identify([texts[i] for i in prose]), strict=True):
        languages[i] = code if probability >= options.min_language_probability else None
        if options.languages and languages[i] not in options.languages:
            reasons[i] = f"language_{languages[i] or 'unknown'}"
    for i, domain in enumerate(domains):
        if domain == CURRICULUM:
            languages[i] = "en"
        elif not reasons[i]:
            texts[i] = _classic(texts[i], None if domain == CODE else languages[i], options, counts)
            reasons[i] = None if texts[i].strip() else "nothing_but_stop_words"
    _count_drops(table, reasons, counts)
    return shards.with_columns(table, text=texts, language=languages).filter(pa.array([reason is None for reason in reasons], pa.bool_()))


def _mended(texts: list[str | None], domains: list[str], options: CleanConfig, counts: Tally) -> tuple[list[str], list[str | None]]:
    """Texts mended, and why some are dropped already: there is nothing in them, or they are so odd that the mending failed."""
    done, reasons = [], []
    for given, domain in zip(texts, domains, strict=True):
        text, reason, changes = given or "", None, Counter()
        if domain != CURRICULUM:
            try:
                text, changes = mend.mended(text, options, code=domain == CODE)
            except Exception as error:  # one poisoned document costs one document
                reason = f"mending_failed_with_{type(error).__name__}"
            if not reason and not text.strip():
                reason = "nothing_but_boilerplate_lines" if any(c.startswith("boilerplate") for c in changes) else "empty"
        if not reason:
            for what, count in changes.items():
                counts.change(what, count)
        done.append(text)
        reasons.append(reason)
    return done, reasons


def _count_drops(table: pa.Table, reasons: list[str | None], counts: Tally) -> None:
    sizes, sources = shards.text_bytes(table), table["source"]
    for i, reason in enumerate(reasons):
        if reason:
            text = table["text"][i].as_py() or ""
            counts.drop(reason, f"{sources[i].as_py()}: {text[:EXAMPLE_CHARACTERS]}", sizes[i] or 0)


def _classic(text: str, spoken: str | None, options: CleanConfig, counts: Tally) -> str:
    """Lower-cased and without stop words, where that is asked for."""
    if not options.lowercase and not options.remove_stop_words:
        return text
    if options.lowercase:
        text = text.lower()
    if options.remove_stop_words and spoken in STOP_WORDS:
        text, count = _stop_words(spoken).subn("", text)
        counts.change("stop_words_removed", count)
    return mend.normalized(text, options.normalization)


@lru_cache
def _stop_words(spoken: str) -> re.Pattern[str]:
    """A stop word and the blanks after it; not a part of a word or of a hyphenated one."""
    return re.compile(rf"(?<![\w'’-])(?:{'|'.join(STOP_WORDS[spoken])})(?![\w'’-])[ \t]*", re.IGNORECASE)
