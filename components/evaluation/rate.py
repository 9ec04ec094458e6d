"""Models rated by whose answers are found better: answers, verdicts, ratings.

    run(config, Given(prompts, writers, ...), out, emit) -> Outcome

    out/answers.jsonl       every prompt with every model's answer
    out/verdicts.jsonl      every comparison, and what the judge said
    out/ratings.json        the ratings (ratings.py) and what is to be known about the judge (judging.py)
    out/report.md           the same for a person
    out/sheet.jsonl, out/key.jsonl      for people: a blind sheet to fill in, and whose letter is whose

A prompt that some model cannot read (too long for it) is left out for all, and counted. Answers are kept model by model, and a judge's votes as they come.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.evaluation.judging import Answers, Chat, Judged, Prefer, Score, by_judge, by_people, by_scores, write_sheet
from components.evaluation.ratings import Rating, ratings
from components.schema.config import BadInput
from components.schema.rating import RatingConfig
from components.schema.records import Outcome, Sample

Write = Callable[[Sequence[Chat], int], Sequence[str | None]]  # an answer to each prompt, sampled by a seed; None where the model cannot read it
SHOWN = 3


@dataclass(frozen=True)
class Given:
    """Prompts, and what answers and judges."""

    prompts: Sequence[Chat]
    writers: Mapping[str, Callable[[], Write]]
    """By model, what loads it: one model is held at a time."""
    score: Score | None = None
    """A reward model."""
    prefer: Prefer | None = None
    """A judge."""
    batched: bool = True
    """Whether the judge takes many pairs at once; if not, several calls are under way."""
    rankings: Path | None = None
    """A sheet that people filled in."""


def run(config: RatingConfig, given: Given, out: Path, emit: Callable[[dict[str, Any]], None] = lambda event: None) -> Outcome:
    """Write answers, verdicts and ratings into `out`. Errors: BadInput; what was done is kept, and the same call goes on."""
    answers, left_out = _answers(config, given, out, emit)
    _write_lines(
        out / "answers.jsonl",
        ({"prompt": prompt, "answers": {name: texts[i] for name, texts in answers.by_model.items()}} for i, prompt in enumerate(answers.prompts)),
    )
    counts = {"prompts": len(answers.prompts), "prompts_left_out": left_out}
    samples = tuple(
        Sample(prompt=f"[{name}] {answers.prompts[i][-1]['content']}", output=texts[i])
        for i in range(min(SHOWN, len(answers.prompts)))
        for name, texts in answers.by_model.items()
    )
    if config.judge.people:
        write_sheet(answers, out / "sheet.jsonl", out / "key.jsonl", config.seed)
        if given.rankings is None:
            emit(
                {
                    "event": "note",
                    "text": "rating: fill in `ranking` on each line of a copy of sheet.jsonl, then run the same file with judge.people.rankings naming it",
                }
            )
            return Outcome(figures=counts, samples=samples)
    judged = _judged(config, given, answers, out, emit)
    _write_lines(out / "verdicts.jsonl", ({key: value for key, value in row.items() if key != "chat"} for row in judged.rows))
    if not judged.verdicts:
        raise BadInput(
            f"rating: the judge said which answer is better of none of {len(judged.rows)} pairs, so nothing can be rated. "
            "Ask it one of verdicts.jsonl by hand, or take another judge"
        )
    found = ratings(judged.verdicts, config.seed)
    figures = {**counts, "judge": judged.figures, "ratings": {name: rating._asdict() for name, rating in found.items()}}
    (out / "ratings.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (out / "report.md").write_text(report(found, {**counts, **judged.figures}), encoding="utf-8")
    return Outcome(figures=figures, samples=samples)


def report(found: Mapping[str, Rating], figures: Mapping[str, float]) -> str:
    """Ratings and the judge's habits as Markdown."""
    lines = ["# Ratings", "", "| model | rating (nats) | 95 % interval | Elo | wins | comparisons |", "|---|---|---|---|---|---|"]
    lines += [f"| {name} | {r.rating:+.2f} | {r.low:+.2f} to {r.high:+.2f} | {r.elo:.0f} | {r.wins:.2f} | {r.comparisons} |" for name, r in found.items()]
    lines += [
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {value:.3f} |" if isinstance(value, float) else f"| {name} | {value} |" for name, value in figures.items()),
    ]
    return "\n".join(lines) + "\n"


def _answers(config: RatingConfig, given: Given, out: Path, emit: Callable[[dict[str, Any]], None]) -> tuple[Answers, int]:
    """Every model's answer to every prompt that all can read, and how many prompts they cannot."""
    said = {}
    for done, (name, load) in enumerate(given.writers.items()):
        kept = out / "work" / f"answers-{name}.json"
        if not kept.is_file():
            write, texts = load(), []
            for start in range(0, len(given.prompts), config.batch_size):
                texts += write(given.prompts[start : start + config.batch_size], config.seed + start)
                emit({"event": "progress", "step": done * len(given.prompts) + len(texts), "total": len(given.writers) * len(given.prompts), "unit": "answers"})
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.with_suffix(".tmp").write_text(json.dumps(texts), encoding="utf-8")
            kept.with_suffix(".tmp").replace(kept)
        said[name] = json.loads(kept.read_text(encoding="utf-8"))
    read = [i for i in range(len(given.prompts)) if all(texts[i] is not None for texts in said.values())]
    if not read:
        raise BadInput("rating: no prompt fits into the context of every model, so there is nothing to compare. Lower max_new_tokens, or name shorter prompts")
    return Answers([given.prompts[i] for i in read], {name: [texts[i] for i in read] for name, texts in said.items()}), len(given.prompts) - len(read)


def _judged(config: RatingConfig, given: Given, answers: Answers, out: Path, emit: Callable[[dict[str, Any]], None]) -> Judged:
    if given.rankings:
        return by_people(given.rankings, out / "key.jsonl")
    if given.score:
        return by_scores(answers, given.score)
    assert given.prefer is not None
    size = {"at_once": config.batch_size} if given.batched else {"concurrency": config.judge.critic.concurrency}
    return by_judge(answers, given.prefer, **size, keep=out / "work" / "votes.jsonl", emit=emit)


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", errors="replace") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
