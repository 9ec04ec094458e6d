"""Feedback by an AI: answer, critique, revision, preference (constitutional AI, Bai et al. 2022, arXiv:2212.08073).

    run(config, Given(policy, critic, constitution, prompts), out, emit) -> Outcome

For each prompt the policy answers; the critic names what is wrong by a principle and rewrites the answer; then it says which of the two is
better by another principle. It is asked twice, the answers changing places, and what counts is the mean: a critic that likes whatever
stands first says nothing that way. Pairs of which the better side changes with the order are left out, and so counted.

Departing from the paper, the answer is compared with its own revision instead of with another sample, and few-shot examples are left to the constitution.

    out/preferences/pairs.jsonl     {"prompt", "chosen", "rejected", "kind", "preference", "principle", "revised"}     a source of data.preferences
    out/revisions/chats.jsonl       {"messages", "kind"}: prompts with the revisions that were preferred               a source of data.chats
    out/rows.jsonl                  everything that was said about each prompt, the dropped ones with their reason
    out/report.md                   the figures, for a person

Every finished row is in `work/rows.jsonl` at once; what is there is not done again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from components.feedback import constitution, critic, prompts, wording
from components.feedback.constitution import Constitution
from components.feedback.critic import Critic
from components.feedback.journal import Journal, Row
from components.schema.feedback import FeedbackConfig
from components.schema.records import Outcome, Sample

KIND = "feedback"
SHOWN = 3  # examples in the record
ENOUGH_AGREEMENT = 0.6  # a coin in place of the critic agrees with itself in half of all pairs


@dataclass(frozen=True)
class Given:
    """Folders and files."""

    policy: Path
    """Chat model that answers."""
    critic: Path | None
    """Model that judges; None for an endpoint."""
    constitution: Path
    prompts: Path


def run(config: FeedbackConfig, given: Given, out: Path, emit: Callable[[dict[str, Any]], None] = lambda event: None) -> Outcome:
    """Write the dataset into `out`. Errors: BadInput before anything is answered, or where an endpoint is lost; then the same call goes on."""
    from components.feedback.local import LocalModel

    principles = constitution.read(given.constitution)
    asked = prompts.read(given.prompts, config.max_prompts)
    judge = critic.made(config.critic, given.critic)
    policy = LocalModel(given.policy, config.max_new_tokens, config.temperature)
    journal = Journal(out / "work" / "rows.jsonl")
    try:
        for first in range(0, len(asked), config.batch_size):
            numbers = range(first, min(first + config.batch_size, len(asked)))
            if any(number not in journal.rows for number in numbers):
                answers = policy.write([asked[number] for number in numbers], _seed(config, first, "answer"))  # the whole batch: an answer depends on it
                rows = [{"row": number, "prompt": asked[number], "answer": answer} for number, answer in zip(numbers, answers, strict=True)]
                _judge(rows, journal, judge, principles, config)
            emit({"event": "progress", "step": numbers.stop, "total": len(asked), "unit": "prompts"})
    finally:
        journal.close()
    outcome = _written([journal.rows[number] for number in range(len(asked))], config, out, judge)
    if (agree := outcome.figures.get("orders_agree", 1.0)) < ENOUGH_AGREEMENT:
        found = f"the critic names the same answer in both orders in {100 * agree:.0f} % of pairs only, and a coin would in 50 %"
        emit({"event": "note", "text": f"{found}: take a better critic before training on this"})
    return outcome


# ---------------------------------------------------------------- one row


def _judge(rows: list[Row], journal: Journal, judge: Critic, principles: Constitution, config: FeedbackConfig) -> None:
    """Rows of a batch, written down as they are finished: all at once by a model of ours, each by itself by an endpoint.

    The first error is raised when no row is at work any more, and those finished till then are kept.
    """
    if judge.batched:
        return journal.add(_judged(rows, judge, principles, config))
    groups = [[row] for row in rows if row["row"] not in journal.rows]
    with ThreadPoolExecutor(config.critic.concurrency) as pool:
        futures: list[Future[list[Row]]] = [pool.submit(_judged, group, judge, principles, config) for group in groups]
        failed: BaseException | None = None
        for future in as_completed(futures):
            if future.cancelled():
                continue
            if error := future.exception():
                failed = failed or error
                pool.shutdown(wait=False, cancel_futures=True)
            else:
                journal.add(future.result())
    if failed:
        raise failed


def _judged(rows: list[Row], judge: Critic, principles: Constitution, config: FeedbackConfig) -> list[Row]:
    """Critique, revise, compare. A row that falls out on the way gets its `reason` and keeps what was said so far."""
    done = [_with_reason(row, None if row["answer"] else "question_longer_than_context" if row["answer"] is None else "empty_answer") for row in rows]
    seed = rows[0]["row"]
    for turn in range(config.revisions):
        left = [row for row in done if "reason" not in row]
        drawn = [principles.drawn(config.seed, row["row"], f"revision {turn}") for row in left]
        last = [row["revisions"][-1] if turn else row["answer"] for row in left]
        requests = [wording.critique(row["prompt"], a, p) for row, a, p in zip(left, last, drawn, strict=True)]
        said = judge.write(requests, _seed(config, seed, f"critique {turn}"))
        told = [(row, a, s, p) for row, a, s, p in zip(left, last, said, drawn, strict=True) if _kept(row, s)]
        new = judge.write([wording.revision(row["prompt"], a, s, p) for row, a, s, p in told], _seed(config, seed, f"revision {turn}"))
        for (row, _, critique, principle), revision in zip(told, new, strict=True):
            if _kept(row, revision):
                for name, value in (("by", principle.id), ("critiques", critique), ("revisions", revision)):
                    row.setdefault(name, []).append(value)
    for row in done:
        if "reason" not in row and row["revisions"][-1] == row["answer"]:
            row["reason"] = "revision_changes_nothing"
    left = [row for row in done if "reason" not in row]
    drawn = [principles.drawn(config.seed, row["row"], "preference") for row in left]
    sides = [(row["answer"], row["revisions"][-1]) for row in left]
    asked = [wording.preference(row["prompt"], *order, p) for row, side, p in zip(left, sides, drawn, strict=True) for order in (side, side[::-1])]
    votes = judge.prefer(asked)
    for place, (row, principle) in enumerate(zip(left, drawn, strict=True)):
        row["principle"], row["first_is_better"] = principle.id, votes[2 * place : 2 * place + 2]
        row.update(_verdict(*row["first_is_better"], config))
    return done


def _kept(row: Row, said: str | None) -> bool:
    """Whether the critic said something; a row about which it did not falls out."""
    if not said:
        row["reason"] = "too_long_for_the_critic_or_refused" if said is None else "critic_is_silent"
    return bool(said)


def _with_reason(row: Row, reason: str | None) -> Row:
    return {**row, "reason": reason} if reason else dict(row)


def _verdict(answer_first: float | None, revision_first: float | None, config: FeedbackConfig) -> Row:
    """Both orders as one: the probability that the revision is better, and why the pair is left out, if it is.

    answer_first: P(first is better) where the answer stands first; revision_first: where the revision does.
    """
    if answer_first is None or revision_first is None:
        return {"reason": "no_label_in_the_reply"}
    better = (1 - answer_first + revision_first) / 2
    found: Row = {"revision_is_better": better}
    if config.orders_must_agree and (answer_first - 0.5) * (revision_first - 0.5) >= 0:
        return {**found, "reason": "orders_disagree"}
    if max(better, 1 - better) <= config.min_preference:
        return {**found, "reason": "preference_too_weak"}
    return found


def _seed(config: FeedbackConfig, row: int, what: str) -> int:
    from random import Random

    return Random(f"{config.seed}/{row}/{what}").getrandbits(31)


# ---------------------------------------------------------------- what is handed over


def _written(rows: list[Row], config: FeedbackConfig, out: Path, judge: Critic) -> Outcome:
    kept = [row for row in rows if "reason" not in row]
    pairs = [_pair(row) for row in kept]
    revised = [{"messages": [*pair["prompt"], {"role": "assistant", "content": pair["chosen"]}], "kind": KIND} for pair in pairs if pair["revised"]]
    figures = _figures(rows, pairs)
    for folder in ("preferences", "revisions"):
        (out / folder).mkdir(exist_ok=True)
    _write_lines(out / "rows.jsonl", rows)
    _write_lines(out / "preferences" / "pairs.jsonl", pairs)
    _write_lines(out / "revisions" / "chats.jsonl", revised)
    (out / "report.md").write_text(_report(figures), encoding="utf-8")
    samples = tuple(Sample(prompt=row["prompt"][-1]["content"], output=_shown(row)) for row in kept[:SHOWN])
    return Outcome(figures=figures, samples=samples, execution={"critic_calls": judge.calls})


def _pair(row: Row) -> dict[str, Any]:
    better = row["revision_is_better"]
    sides = (row["revisions"][-1], row["answer"]) if better > 0.5 else (row["answer"], row["revisions"][-1])
    return {
        "prompt": row["prompt"], "chosen": sides[0], "rejected": sides[1], "kind": KIND, "preference": max(better, 1 - better), "principle": row["principle"],
        "revised": better > 0.5,
    }  # fmt: skip


def _figures(rows: list[Row], pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and shares. Position bias is how much more than half the critic gives to what stands first, 0 for one that has none."""
    labelled = [row["first_is_better"] for row in rows if "revision_is_better" in row]
    dropped = Counter(row["reason"] for row in rows if "reason" in row)
    figures: dict[str, Any] = {"prompts": len(rows), "pairs": len(pairs), "dropped": dict(sorted(dropped.items()))}
    if labelled:
        figures["position_bias"] = fmean(vote for votes in labelled for vote in votes) - 0.5
        figures["orders_agree"] = fmean((votes[0] - 0.5) * (votes[1] - 0.5) < 0 for votes in labelled)
    if pairs:
        figures |= {
            "preference": fmean(pair["preference"] for pair in pairs),
            "revision_is_better": fmean(pair["revised"] for pair in pairs),
            "longer_is_chosen": fmean(len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs),
            "characters_chosen": fmean(len(pair["chosen"]) for pair in pairs),
            "characters_rejected": fmean(len(pair["rejected"]) for pair in pairs),
            "by_principle": {
                name: {"pairs": len(own), "revision_is_better": fmean(pair["revised"] for pair in own)}
                for name in sorted({pair["principle"] for pair in pairs})
                if (own := [pair for pair in pairs if pair["principle"] == name])
            },
        }
    return figures


def _report(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["# Feedback", "", "| figure | value |", "|---|---|"]
    for name, value in figures.items():
        if isinstance(value, dict):
            lines += [f"| {name}: {key} | {_number(one)} |" for key, one in value.items()]
        else:
            lines.append(f"| {name} | {_number(value)} |")
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_number(one)}" for key, one in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _shown(row: Row) -> str:
    return f"answer: {row['answer']}\ncritique: {row['critiques'][-1]}\nrevision: {row['revisions'][-1]}\nrevision is better: {row['revision_is_better']:.2f}"


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", errors="replace") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
