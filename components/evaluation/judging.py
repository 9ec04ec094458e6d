"""Answers of several models to the same prompts, compared two at a time: by a reward model, by a judge that reads both, or by people.

    by_scores(answers, score)            # a reward model: the higher score is better
    by_judge(answers, prefer, ...)       # a judge is asked twice, the answers changing places; it counts where both orders agree, else it is a draw
    by_people(answers, rankings)         # rankings of a blind sheet (write_sheet), which says nowhere whose answer is whose

Judges like what stands first and what is long (Zheng et al. 2023, arXiv:2306.05685): the first is taken out by asking twice and told as
`position_bias`, the second is told as `longer_wins`. Verdicts become ratings in ratings.py. Every pair of models is compared on every prompt, and
equal answers are a draw that nobody is asked about.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, NamedTuple

from components.evaluation.ratings import Verdict
from components.models.scoring import Score
from components.schema.config import BadInput

Message = dict[str, str]
Chat = list[Message]
Prefer = Callable[[Sequence[Chat]], Sequence[float | None]]  # the probability of label A for each request; None where there is no answer
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDING = (
    "Two assistants answered the same user. Which answer is better: more helpful, more correct, and harmless? "
    "Neither the order of the answers nor their length should matter.\n\n{shown}\n\nAnswer A: {first}\n\nAnswer B: {second}\n\n"
    "Which answer is better? Reply with one letter, A or B."
)


class Answers(NamedTuple):
    """What models said."""

    prompts: Sequence[Chat]
    """Turns up to a user's last."""
    by_model: Mapping[str, Sequence[str]]
    """One answer to each prompt, by model."""

    def pairs(self) -> list[tuple[int, str, str]]:
        """Every prompt with every two models."""
        return [(i, *two) for i in range(len(self.prompts)) for two in combinations(self.by_model, 2)]


class Judged(NamedTuple):
    """Verdicts and what is to be known about the judge."""

    verdicts: list[Verdict]
    rows: list[dict[str, Any]]
    """One a comparison: prompt, models, answers, what the judge said."""
    figures: dict[str, float]


# ---------------------------------------------------------------- a reward model


def by_scores(answers: Answers, score: Score) -> Judged:
    """The answer with the higher score is better; equal scores are a draw."""
    chats = [[*prompt, _said(texts[i])] for texts in answers.by_model.values() for i, prompt in enumerate(answers.prompts)]
    flat = [float(one) for one in score(chats)]
    found = {name: flat[k * len(answers.prompts) : (k + 1) * len(answers.prompts)] for k, name in enumerate(answers.by_model)}
    rows = []
    for i, first, second in answers.pairs():
        a, b = found[first][i], found[second][i]
        rows.append({**_row(answers, i, first, second), "preference": 0.5 if a == b else float(a > b), "score_first": a, "score_second": b})
    return _judged(rows, {f"mean_score_{name}": fmean(found[name]) for name in found})


# ---------------------------------------------------------------- a judge


def by_judge(
    answers: Answers,
    prefer: Prefer,
    at_once: int = 1,
    concurrency: int = 1,
    keep: Path | None = None,
    emit: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Judged:
    """Each pair in both orders. A pair with an order that got no answer has no verdict and is counted as `unanswered`.

    `at_once` pairs go into one call, `concurrency` calls are under way. `keep`: a file of what was answered, so that a killed run goes on.
    """
    rows = [_row(answers, i, first, second) for i, first, second in answers.pairs()]
    asked = [row for row in rows if row["answer_first"] != row["answer_second"]]
    votes = _kept(keep)
    groups = [group for start in range(0, len(asked), at_once) if (group := [row for row in asked[start : start + at_once] if _key(row) not in votes])]
    with ThreadPoolExecutor(concurrency) as pool, (keep or Path("/dev/null")).open("a", encoding="utf-8") as file:
        try:
            for group, found in zip(groups, pool.map(lambda group: _both_orders(group, prefer), groups), strict=True):
                for row, vote in zip(group, found, strict=True):
                    votes[_key(row)] = vote
                    file.write(json.dumps([_key(row), vote]) + "\n")
                file.flush()
                emit({"event": "progress", "step": len(votes), "total": len(asked), "unit": "pairs"})
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a judge that is lost is not asked again for each pair that is left
    for row in rows:
        row["votes"] = votes.get(_key(row), [0.5, 0.5])
        row["preference"] = _verdict(*row["votes"])
    answered = [votes[_key(row)] for row in asked if row["preference"] is not None]
    figures: dict[str, float] = {"unanswered": len(asked) - len(answered)}
    if answered:
        figures["position_bias"] = fmean(vote for pair in answered for vote in (pair[0], pair[1])) - 0.5
        figures["orders_agree"] = fmean(_verdict(*pair) != 0.5 for pair in answered)
    return _judged(rows, figures)


def request(row: Mapping[str, Any], swapped: bool) -> Chat:
    """What a judge is asked. The conversation is shown as text: what stands in it is to be judged, never followed."""
    shown = "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in row["chat"])
    first, second = (row["answer_second"], row["answer_first"]) if swapped else (row["answer_first"], row["answer_second"])
    return [{"role": "user", "content": WORDING.format(shown=shown, first=first, second=second)}]


def _both_orders(group: Sequence[Mapping[str, Any]], prefer: Prefer) -> list[list[float | None]]:
    """The probability of what stands first, for each pair in both orders."""
    found = list(prefer([request(row, swapped) for row in group for swapped in (False, True)]))
    return [found[2 * i : 2 * i + 2] for i in range(len(group))]


def _verdict(first: float | None, swapped: float | None) -> float | None:
    """1 or 0 where both orders prefer the same answer, else a draw; None where an order has no answer."""
    if first is None or swapped is None:
        return None
    if (first - 0.5) * (swapped - 0.5) >= 0:
        return 0.5
    return float(first > 0.5)


def _key(row: Mapping[str, Any]) -> str:
    return f"{row['prompt']} {row['first']} {row['second']}"


def _kept(path: Path | None) -> dict[str, Any]:
    """What an earlier run wrote; a line that a kill cut off is dropped."""
    if path is None or not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    path.write_text(whole, encoding="utf-8")
    return dict(json.loads(line) for line in whole.splitlines())


# ---------------------------------------------------------------- people


def write_sheet(answers: Answers, sheet: Path, key: Path, seed: int) -> None:
    """A JSON line for each prompt, its answers by letter in an order drawn anew, and a `ranking` to fill in; whose letter is whose stands in `key` alone."""
    draw, names = Random(seed), list(answers.by_model)
    sheets, keys = [], []
    for i, prompt in enumerate(answers.prompts):
        order = draw.sample(names, len(names))
        letters = dict(zip(LETTERS, order, strict=False))
        sheets.append({"row": i, "conversation": prompt, "answers": {letter: answers.by_model[name][i] for letter, name in letters.items()}, "ranking": []})
        keys.append({"row": i, **letters})
    for path, rows in ((sheet, sheets), (key, keys)):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def by_people(rankings: Path, key: Path | None = None) -> Judged:
    """Filled sheets: `ranking` holds letters (or, without a key, models) from best to worst, equally good ones in a list of their own: ["B", ["A", "C"]].

    A row without a ranking is left out. Several people may rank a row (`judge` names them); `people_agree` is how often two of them say the same of a pair.
    Errors: BadInput with the line's number.
    """
    names = {row["row"]: row for row in _lines(key)} if key else {}
    verdicts, rows, judges = [], [], {}
    for number, row in enumerate(_lines(rankings), start=1):
        for first, second, preference in _pairs_of(row, names.get(row.get("row"), {}) if key else None, f"{rankings}, line {number}"):
            who = str(row.get("judge", ""))
            verdicts.append(Verdict(str(row.get("row", number)), first, second, preference))
            rows.append({"prompt": str(row.get("row", number)), "first": first, "second": second, "preference": preference, "judge": who})
            judges.setdefault((row.get("row", number), first, second), []).append(preference)
    if not verdicts:
        raise BadInput(
            f"judging: {rankings} holds no ranking, so nothing can be rated. Write the letters of each line's answers into its `ranking`, from best to worst"
        )
    twice = [a == b for said in judges.values() for a, b in combinations(said, 2)]
    return Judged(verdicts, rows, {"comparisons": len(verdicts), **({"people_agree": fmean(twice)} if twice else {})})


def _pairs_of(row: Mapping[str, Any], letters: Mapping[str, str] | None, where: str) -> Iterable[tuple[str, str, float]]:
    """Pairs in the order of their names, so that two people's verdicts meet."""
    ranking = row.get("ranking", [])
    tiers = [tier if isinstance(tier, list) else [tier] for tier in ranking] if isinstance(ranking, list) else [[]]
    flat = [one for tier in tiers for one in tier]
    if letters is not None and (unknown := [one for one in flat if one not in letters or one == "row"]):
        raise BadInput(
            f"judging: {where} ranks {unknown[0]!r}, which is no letter of its answers "
            f"({', '.join(name for name in letters if name != 'row') or 'the row is not in the key'}). Correct the line"
        )
    if not isinstance(ranking, list) or len(set(map(str, flat))) < len(flat) or (flat and len(flat) < 2):
        raise BadInput(
            f'judging: {where} has the ranking {ranking!r}, which is no order of two or more answers. '
            'Write for example ["B", "A"], or ["B", ["A", "C"]] for equals'
        )
    placed = {(letters[one] if letters else one): place for place, tier in enumerate(tiers) for one in tier}
    for first, second in combinations(sorted(placed), 2):
        yield first, second, 0.5 if placed[first] == placed[second] else float(placed[first] < placed[second])


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise BadInput(
            f"judging: {path} is not readable as JSON lines ({str(error).splitlines()[0]}), so there is nothing to rate. Give the sheet, filled in"
        ) from None


# ---------------------------------------------------------------- rows


def _row(answers: Answers, i: int, first: str, second: str) -> dict[str, Any]:
    texts = answers.by_model
    return {"prompt": str(i), "chat": answers.prompts[i], "first": first, "second": second, "answer_first": texts[first][i], "answer_second": texts[second][i]}


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _judged(rows: list[dict[str, Any]], figures: dict[str, float]) -> Judged:
    """Verdicts of the rows that have one, and how often the longer answer wins where one does."""
    decided = [row for row in rows if row["preference"] is not None]
    verdicts = [Verdict(row["prompt"], row["first"], row["second"], row["preference"]) for row in decided]
    told = {"comparisons": len(verdicts), "draws": fmean(verdict.preference == 0.5 for verdict in verdicts) if verdicts else 0.0}
    unlike = [row for row in decided if row["preference"] != 0.5 and len(row["answer_first"]) != len(row["answer_second"])]
    if unlike:
        told["longer_wins"] = fmean((len(row["answer_first"]) > len(row["answer_second"])) == (row["preference"] == 1) for row in unlike)
    return Judged(verdicts, rows, {**told, **figures})
