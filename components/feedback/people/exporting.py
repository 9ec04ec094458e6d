"""What people said, as data to train on: preferences, chats out of their edits, and what they flagged.

    export(said, folder, min_gold=0.7) -> figures

    folder/preferences/pairs.jsonl    {"prompt", "chosen", "rejected", "kind", "votes", "safer", "safe"}       a source of data.preferences
    folder/edits/chats.jsonl          {"messages", "kind"}: prompts with the answers that people wrote          a source of data.chats
    folder/safety/answers.jsonl       {"prompt", "answer", "flags", "people"}: every answer that somebody flagged
    folder/report.json, report.md     how many, and what was left out and why

A pair counts where more people have it in one order than in the other; what they are asked twice to compare is one row, and not two that may
contradict each other. An answer is unsafe where at least half of those who ranked it flagged it. Rows stand in an order that follows from what is in
them, and nobody's name is in them: the same opinions give the same bytes, in whatever order they came in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from components.feedback.people import agreement
from components.feedback.people.opinions import Said

KIND = "people"
REPORT = "report.json"
Row = dict[str, Any]


def export(rankings: Sequence[Said], folder: Path, min_gold: float = 0.0) -> dict[str, Any]:
    """Write the dataset into an empty folder, and give its figures. `min_gold`: people who are right less often on known questions are left out."""
    accuracy = agreement.gold_accuracy(rankings)
    trusted = [one for one in rankings if accuracy.get(one.annotator, 1.0) >= min_gold]
    asked = [one for one in trusted if one.item.gold is None]
    dropped: Counter[str] = Counter()
    items = [list(group) for _, group in groupby(sorted(asked, key=lambda one: (one.item.digest, one.annotator)), key=lambda one: one.item.digest)]
    pairs = [pair for group in items for pair in _pairs(group, dropped)]
    edits = [row for group in items for row in _edits(group)]
    flagged = [row for group in items for row in _flagged(group)]
    figures = {
        "rankings": len(asked),
        "items": len(items),
        "annotators": len({one.annotator for one in asked}),
        "annotators_below_min_gold": len({one.annotator for one in rankings} - {one.annotator for one in trusted}),
        "gold_rankings_left_out": sum(one.item.gold is not None for one in trusted),
        "pairs": len(pairs),
        "edits": len(edits),
        "flagged_answers": len(flagged),
        "dropped": dict(sorted(dropped.items())),
        "alpha": agreement.figures(asked)["alpha"],
        "min_gold": min_gold,
    }
    _write(folder / "preferences" / "pairs.jsonl", pairs)
    _write(folder / "edits" / "chats.jsonl", edits)
    _write(folder / "safety" / "answers.jsonl", flagged)
    (folder / REPORT).write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_report(figures), encoding="utf-8")
    return figures


def _pairs(group: list[Said], dropped: Counter[str]) -> list[Row]:
    """The pairs of one item that its people agree on by more than a draw; why the others are not there is counted."""
    usable = [one for one in group if not one.opinion.all_bad]
    answers, unsafe = group[0].item.answers, _unsafe(group)
    found = []
    for first, second in combinations(range(len(answers)), 2):
        votes = [agreement.order(one, first, second) for one in usable]
        balance = sum(votes)
        if not balance:
            dropped["all_bad" if not usable else "people_disagree" if any(votes) else "tie"] += 1
            continue
        better, worse = (first, second) if balance > 0 else (second, first)
        sign = 1 if balance > 0 else -1
        found.append(
            {
                "prompt": group[0].item.prompt, "chosen": answers[better]["text"], "rejected": answers[worse]["text"], "kind": KIND,
                "votes": [votes.count(sign), votes.count(0), votes.count(-sign)], **_safety(unsafe[better], unsafe[worse]),
            }
        )  # fmt: skip
    return found


def _unsafe(group: list[Said]) -> list[bool]:
    """Of each answer, whether at least half of the people flagged it."""
    return [2 * sum(bool(one.opinion.flags and one.opinion.flags[place]) for one in group) >= len(group) for place in range(len(group[0].item.answers))]


def _safety(chosen: bool, rejected: bool) -> Row:
    """What data.preferences reads about harm, where a side is unsafe; equally unsafe sides name no safer one."""
    if not (chosen or rejected):
        return {}
    return {**({"safer": "rejected" if chosen else "chosen"} if chosen != rejected else {}), "safe": [not chosen, not rejected]}


def _edits(group: list[Said]) -> list[Row]:
    """Answers that people wrote, each text once."""
    texts = sorted({one.opinion.edit.text.strip() for one in group if one.opinion.edit})
    return [{"messages": [*group[0].item.prompt, {"role": "assistant", "content": text}], "kind": KIND} for text in texts]


def _flagged(group: list[Said]) -> list[Row]:
    counts = [Counter(flag for one in group if one.opinion.flags for flag in set(one.opinion.flags[place])) for place in range(len(group[0].item.answers))]
    return [
        {"prompt": group[0].item.prompt, "answer": answer["text"], "flags": dict(sorted(flags.items())), "people": len(group)}
        for answer, flags in zip(group[0].item.answers, counts, strict=True)
        if flags
    ]


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _report(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [(name.replace("_", " "), value) for name, value in figures.items() if name != "dropped"]
    rows += [(f"pairs left out: {reason.replace('_', ' ')}", count) for reason, count in figures["dropped"].items()]
    shown = [(name, "not known" if value is None else f"{value:.3f}" if isinstance(value, float) else value) for name, value in rows]
    return "\n".join(["# Feedback by people", "", "| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in shown)]) + "\n"
