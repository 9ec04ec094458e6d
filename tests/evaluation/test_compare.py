"""Comparisons, held against hand-worked numbers, scipy, and what must not change them."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import stats

from components.evaluation import evidence
from components.evaluation.comparison import page, pictures, terminal, words
from components.evaluation.comparison.compare import Comparison, Row, _holm, _row, compare, in_turn
from components.evaluation.comparison.reports import KEY, Report
from components.schema.config import BadInput
from components.schema.gate import NoiseFloor, Spread
from components.schema.records import Record
from tests.evaluation.evaluated import answers, choice, evaluation, item, stage

RIGHT = [1.0] * 12 + [0.0] * 8
BETTER = [1.0] * 11 + [0.0] + [1.0] * 6 + [0.0] * 2  # loses one that RIGHT has, wins six


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pair(home: Path, first: dict[str, Any], second: dict[str, Any], **second_options: Any) -> list[Report]:
    """Two evaluations of one role; {suite: items}."""
    a = evaluation(home, {"policy": first}, {"policy": "a" * 32})
    b = evaluation(home, {"policy": second}, {"policy": "b" * 32}, **second_options)
    return [Report.read(a, label="old"), Report.read(b, label="new")]


def one(comparison: Comparison, suite: str, model: int = 1) -> Any:
    return comparison.suites[suite].against[model]


# ---------------------------------------------------------------- numbers


def test_a_difference_is_counted_item_by_item(home: Path) -> None:
    found = one(compare(pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", BETTER)})), "sums")
    assert (found.items, found.won, found.lost) == (20, 6, 1)
    assert found.difference.difference == pytest.approx(5 / 20)
    assert found.p == pytest.approx(stats.binomtest(1, 7).pvalue)  # McNemar is a coin thrown seven times
    assert found.difference.low < 5 / 20 < found.difference.high


def test_graded_scores_are_compared_with_an_interval_near_that_of_students_t(home: Path) -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 1, 400)
    b = np.clip(a + rng.normal(0.03, 0.1, 400), 0, 1)
    found = one(compare(pair(home, {"f1": answers("f1", a)}, {"f1": answers("f1", b)})), "f1")
    peer = stats.ttest_rel(b, a)
    low, high = peer.confidence_interval()
    assert found.difference == pytest.approx((float((b - a).mean()), low, high), abs=0.0015)
    assert found.p < 0.001 and peer.pvalue < 0.001 and found.verdict == "better"


def test_the_other_way_round_is_the_same_difference_with_the_other_sign(home: Path) -> None:
    reports = pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", BETTER)})
    there, back = one(compare(reports), "sums"), one(compare(reports[::-1]), "sums")
    assert there.difference == pytest.approx((-back.difference.difference, -back.difference.high, -back.difference.low))
    assert (there.won, there.lost, there.p) == (back.lost, back.won, back.p)


def test_the_order_of_the_items_changes_nothing(home: Path) -> None:
    shuffled = answers("sums", BETTER)
    random.Random(3).shuffle(shuffled)
    first, straight = pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", BETTER)})
    mixed = Report.read(evaluation(home, {"policy": {"sums": shuffled}}, {"policy": "c" * 32}), label="mixed")
    row = compare([first, straight, mixed]).suites["sums"]
    assert row.against[1] == row.against[2] and row.scores[1] == row.scores[2]


def test_a_model_against_itself_differs_in_nothing(home: Path) -> None:
    folder = evaluation(home, {"policy": {"sums": answers("sums", RIGHT)}})
    comparison = compare([Report.read(folder, label="a"), Report.read(folder, label="b")])
    found = one(comparison, "sums")
    assert found.difference.difference == 0 and found.p == 1 and found.verdict == "no difference seen"
    assert not comparison.flips and not comparison.warnings
    assert not any(getattr(comparison.changes, kind) for kind in page.KINDS)


def test_the_interval_of_a_score_of_right_and_wrong_is_wilsons(home: Path) -> None:
    comparison = compare(pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", BETTER)}))
    peer = stats.binomtest(12, 20).proportion_ci(method="wilson")
    first = comparison.suites["sums"].scores[0]
    assert (first.score, first.low, first.high) == pytest.approx((0.6, peer.low, peer.high))


def test_p_values_are_corrected_for_the_number_of_suites_and_models(home: Path) -> None:
    first, second = {}, {}
    for n, name in enumerate("abc"):
        first[name] = answers(name, [0.0] * 30)
        second[name] = answers(name, [1.0] * (4 + 2 * n) + [0.0] * (26 - 2 * n))
    found = compare(pair(home, first, second)).suites
    ps = {name: found[name].against[1].p for name in "abc"}
    assert ps == pytest.approx({"a": 2 / 2**4, "b": 2 / 2**6, "c": 2 / 2**8})
    assert [found[name].against[1].corrected_p for name in "abc"] == pytest.approx([ps["a"], 2 * ps["b"], 3 * ps["c"]])  # Holm, by hand
    assert [found[name].against[1].verdict for name in "abc"] == ["no difference seen", "no difference seen", "better"]


def test_every_model_is_held_against_the_first(home: Path) -> None:
    reports = [
        Report.read(evaluation(home, {"policy": {"sums": answers("sums", scores)}}, {"policy": str(i) * 32}), label=str(i))
        for i, scores in enumerate((RIGHT, BETTER, [0.0] * 20))
    ]
    row = compare(reports).suites["sums"]
    assert row.against[0] is None
    assert [row.against[i].difference.difference for i in (1, 2)] == pytest.approx([0.25, -0.6])
    assert row.against[2].verdict == "worse"


def test_only_items_that_both_answered_are_compared_and_it_is_said(home: Path) -> None:
    comparison = compare(pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", BETTER)[:14]}))
    found = one(comparison, "sums")
    assert found.items == 14 and found.difference.difference == pytest.approx((2 - 1) / 14)
    assert any("answered 14 items and old 20; 14 are the same" in warning for warning in comparison.warnings)


def test_items_are_told_apart_by_their_document_and_not_by_their_place(home: Path) -> None:
    moved = [{**row, "id": row["id"] + 100} for row in answers("sums", BETTER)]
    assert one(compare(pair(home, {"sums": answers("sums", RIGHT)}, {"sums": moved})), "sums").items == 20


def test_a_document_that_stands_twice_is_two_items(home: Path) -> None:
    twice = [{**item("sums", 0, score), "id": i} for i, score in enumerate((1, 0, 1))]
    other = [{**item("sums", 0, score), "id": i} for i, score in enumerate((1, 1, 1))]
    found = one(compare(pair(home, {"sums": twice}, {"sums": other})), "sums")
    assert (found.items, found.won, found.lost) == (3, 1, 0)


def test_without_items_scores_are_independent_samples_and_the_interval_is_wider(home: Path) -> None:
    paired = one(compare(pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", BETTER)})), "sums")
    a = evaluation(home, {"chat": {"sums": answers("sums", RIGHT)}}, {"chat": "c" * 32}, keep_items=False)
    b = evaluation(home, {"chat": {"sums": answers("sums", BETTER)}}, {"chat": "d" * 32}, keep_items=False)
    comparison = compare([Report.read(a, label="old"), Report.read(b, label="new")])
    found = one(comparison, "sums")
    spread = math.sqrt(np.var(RIGHT, ddof=1) / 20 + np.var(BETTER, ddof=1) / 20)
    assert found.items == 0 and found.difference == pytest.approx((0.25, 0.25 - 1.96 * spread, 0.25 + 1.96 * spread), abs=1e-4)
    assert found.difference.high - found.difference.low > paired.difference.high - paired.difference.low
    assert any("sums: the items of new and old are not both kept" in warning for warning in comparison.warnings)


def test_a_score_that_is_no_mean_of_its_items_is_not_compared_by_them(home: Path) -> None:
    reports = pair(home, {"group": answers("group", RIGHT)}, {"group": answers("group", BETTER)})
    reports[1].scores["group"]["score"] = 0.7  # as where tasks of different sizes weigh the same
    comparison = compare(reports)
    assert one(comparison, "group").items == 0 and one(comparison, "group").difference.difference == pytest.approx(0.1)
    assert any("no mean of its items" in warning for warning in comparison.warnings)


def test_all_right_against_all_right_is_not_certain(home: Path) -> None:
    a = evaluation(home, {"chat": {"sums": answers("sums", [1.0] * 8)}}, {"chat": "c" * 32}, keep_items=False)
    b = evaluation(home, {"chat": {"sums": answers("sums", [0.0] * 2)}}, {"chat": "d" * 32}, keep_items=False)
    found = one(compare([Report.read(a, label="old"), Report.read(b, label="new")]), "sums")
    assert found.difference.high - found.difference.low > 0.5 and 0 < found.p < 1


def test_other_metrics_are_not_compared(home: Path) -> None:
    reports = pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", BETTER)})
    reports[1].scores["sums"]["metric"] = "f1"
    comparison = compare(reports)
    assert one(comparison, "sums") is None
    assert "sums has the metric acc for old and f1 for new: not compared." in comparison.warnings
    assert "no suite can be compared with old" in words.summary(comparison)[0]


def test_a_suite_that_one_model_lacks_is_shown_without_a_difference(home: Path) -> None:
    comparison = compare(pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", BETTER), "extra": answers("extra", RIGHT)}))
    assert one(comparison, "extra") is None and comparison.suites["extra"].scores[0] is None
    assert "extra was measured for new alone." in comparison.warnings
    assert "not compared" in page.page(comparison)


def test_where_lower_is_better_a_lower_score_wins(home: Path) -> None:
    reports = pair(home, {"errors": answers("errors", [1.0] * 15)}, {"errors": answers("errors", [0.0] * 14 + [1.0])})
    for report in reports:
        report.scores["errors"]["lower_is_better"] = True
    comparison = compare(reports)
    found = one(comparison, "errors")
    assert found.difference.difference < 0 and found.verdict == "better" and (found.won, found.lost) == (14, 0)
    assert [flip.won for flip in comparison.flips["errors"]] == [[True]] * 14


def test_of_a_perplexity_the_score_is_lower_and_the_items_higher_where_a_model_is_better(home: Path) -> None:
    reports = pair(home, {"text": answers("text", [-2.0] * 9)}, {"text": answers("text", [-1.5] * 9)})
    for report, score in zip(reports, (math.exp(2), math.exp(1.5)), strict=True):
        report.scores["text"].update(metric="word_perplexity", score=score, stderr=0.1, lower_is_better=True)
    comparison = compare(reports)
    found = one(comparison, "text")
    assert found.verdict == "better" and found.difference.difference < 0 and (found.items, found.won, found.lost) == (0, 9, 0)
    assert [flip.won for flip in comparison.flips["text"]] == [[True]] * 9
    assert page.drawn(comparison) == {} and "word_perplexity, lower is better" in page.page(comparison)  # no bar from 0 to 1 can show it


def test_a_score_whose_error_nobody_knows_is_never_called_better(home: Path) -> None:
    reports = pair(home, {"text": answers("text", [-2.0] * 9)}, {"text": answers("text", [-1.5] * 9)})
    for report, score in zip(reports, (7.4, 4.5), strict=True):
        report.scores["text"].update(metric="word_perplexity", score=score, stderr=0.0, lower_is_better=True)
    comparison = compare(reports)
    assert one(comparison, "text").verdict == "no difference seen" and one(comparison, "text").p == 1
    assert json.loads(json.dumps(comparison.plain(), allow_nan=False))["suites"]["text"]["against"][1]["difference"][1] is None


def test_second_metrics_and_scores_by_contamination_stand_beside_the_first(home: Path) -> None:
    reports = pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", BETTER)})
    for report in reports:
        clean, other = {"score": 0.5, "stderr": 0.1, "items": 15}, {"score": None, "stderr": None, "items": 0}
        report.scores["sums"].update(second={"metric": "flexible", "score": 0.75, "stderr": 0.1}, clean=clean, contaminated=other)
    figures = {kind: {row.name: row.values for row in rows} for kind, rows in compare(reports).figures.items()}
    assert figures["second"] == {"sums flexible": [0.75, 0.75]}
    assert figures["contamination"] == {"sums.full": [0.6, 0.85], "sums.clean": [0.5, 0.5], "sums.clean_items": [15, 15], "sums.contaminated_items": [0, 0]}


def test_a_measured_noise_floor_widens_its_suite_alone(home: Path) -> None:
    suites = (
        {name: answers(name, [1.0] * 60 + [0.0] * 40) for name in ("calm", "noisy")},
        {name: answers(name, [1.0] * 80 + [0.0] * 20) for name in ("calm", "noisy")},
    )
    reports = pair(home, *suites)
    plain, widened = compare(reports), compare(reports, noise=NoiseFloor(suites={"noisy": Spread(spread=0.2, repeats=5)}))
    assert one(plain, "calm").difference == one(widened, "calm").difference
    assert one(widened, "noisy").difference.low < 0 < one(plain, "noisy").difference.low
    assert one(plain, "noisy").verdict == "better" and one(widened, "noisy").verdict == "no difference seen"


def _items_of(scores: np.ndarray) -> pd.DataFrame:
    index = pd.MultiIndex.from_arrays([["t"] * len(scores), [str(n) for n in range(len(scores))], [0] * len(scores)], names=KEY)
    return pd.DataFrame({"score": scores.astype(float), "truncated": False}, index=index)


def _row_of(name: str, first: np.ndarray, second: np.ndarray) -> Row:
    scores = [
        {"metric": "acc", "score": float(got.mean()), "stderr": float(got.std(ddof=1) / math.sqrt(len(got))), "items": len(got)} for got in (first, second)
    ]
    return _row(name, scores, [_items_of(first), _items_of(second)], seed=0)


def test_where_nothing_changed_a_verdict_on_any_of_four_suites_comes_once_in_twenty_times_at_most() -> None:
    """Two models of equal skill that agree on most items: 300 comparisons of four suites."""
    rng, alarms = np.random.default_rng(7), 0
    for _ in range(300):
        rows = []
        for n in range(4):
            easy = rng.uniform(0, 1, 80)  # how likely either is right
            rows.append(_row_of(str(n), rng.uniform(0, 1, 80) < easy, rng.uniform(0, 1, 80) < easy))
        alarms += any(row.against[1].verdict != "no difference seen" for row in _holm(rows))
    assert alarms <= 22  # 15 are expected of an exact 5 %; 22 or more have a chance of 5 % then


def test_the_interval_holds_the_true_difference_nineteen_times_in_twenty() -> None:
    rng, held = np.random.default_rng(8), 0
    for _ in range(300):
        easy = rng.uniform(0, 0.8, 60)
        found = _row_of("s", rng.uniform(0, 1, 60) < easy, rng.uniform(0, 1, 60) < easy + 0.15).against[1].difference
        held += found.low <= 0.15 <= found.high
    assert held >= 277  # 285 are expected


# ---------------------------------------------------------------- subjects and items


def quiz(seed: int, skill: float, subjects: int = 4, each: int = 25) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [choice(f"quiz_{'abcdefgh'[s]}", n, 1 if rng.random() < skill else rng.choice((0, 2, 3))) for s in range(subjects) for n in range(each)]


def test_subjects_add_up_to_their_suite(home: Path) -> None:
    row = compare(pair(home, {"quiz": quiz(1, 0.4)}, {"quiz": quiz(2, 0.7)})).suites["quiz"]
    assert [subject.name for subject in row.subjects] == ["quiz_a", "quiz_b", "quiz_c", "quiz_d"]
    assert np.mean([subject.scores[1].score for subject in row.subjects]) == pytest.approx(row.scores[1].score)
    assert sum(subject.against[1].won for subject in row.subjects) == row.against[1].won
    assert sum(subject.against[1].items for subject in row.subjects) == row.against[1].items == 100


def test_subjects_of_a_suite_whose_items_have_no_scores_of_their_own_are_the_harness_s(home: Path) -> None:
    reports = pair(home, {"quiz": quiz(1, 0.4)}, {"quiz": quiz(2, 0.7)})
    for report, scores in zip(reports, (0.3, 0.6), strict=True):
        report.scores["quiz"]["subjects"] = {name: {"score": scores, "stderr": 0.05, "items": 25} for name in ("quiz_a", "quiz_b")}
        report.items("quiz")["score"] = np.nan
    row = compare(reports).suites["quiz"]
    assert [(subject.name, subject.against[1].difference.difference, subject.against[1].items) for subject in row.subjects] == [
        ("quiz_a", 0.3, 0),
        ("quiz_b", 0.3, 0),
    ]


def test_a_suite_of_one_task_has_no_subjects(home: Path) -> None:
    assert compare(pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", BETTER)})).suites["sums"].subjects == []


def test_items_won_and_lost_come_with_what_both_models_said(home: Path) -> None:
    flips = compare(pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", BETTER)})).flips["sums"]
    assert {(flip.id, flip.scores[0], flip.scores[1]) for flip in flips} == {(11, 1.0, 0.0), *((n, 0.0, 1.0) for n in range(12, 18))}
    lost = next(flip for flip in flips if flip.id == 11)
    assert (lost.question, lost.target, lost.outputs) == ("sums: what is 11 + 1?", "12", ["12", "a pony"])


def test_no_more_items_are_shown_than_asked_for_and_subjects_take_turns(home: Path) -> None:
    flips = compare(pair(home, {"quiz": quiz(1, 0.2)}, {"quiz": quiz(2, 0.8)}), shown=4).flips["quiz"]
    won = [flip for flip in flips if flip.scores[1] > flip.scores[0]]
    assert len(won) == 4 and {flip.task for flip in won} == {"quiz_a", "quiz_b", "quiz_c", "quiz_d"}


def test_dealing_in_turn_loses_nothing() -> None:
    keys = [("a", str(n), 0) for n in range(5)] + [("b", "0", 0)] + [("c", str(n), 0) for n in range(2)]
    assert sorted(in_turn(keys)) == sorted(keys)
    assert [key[0] for key in in_turn(keys)] == ["a", "b", "c", "a", "c", "a", "a", "a"]


# ---------------------------------------------------------------- what changed


def test_one_other_option_is_one_change(home: Path) -> None:
    def made(rate: float) -> str:
        base = stage(
            home, "pretrain", {"pretrain": {"steps": 10, "learning_rate": rate}, "model": {"layers": 2}, "seed": 0}, {"tokens": "t.dir", "mix": "m.dir"}
        )
        return stage(home, "sft", {"sft": {"steps": 5}, "seed": 0}, {"base": base, "chats": "c.dir"})

    folders = [evaluation(home, {"chat": {"sums": answers("sums", RIGHT)}}, {"chat": made(rate)}) for rate in (1e-3, 3e-3)]
    changes = compare([Report.read(folder, label=name) for folder, name in zip(folders, "ab", strict=True)]).changes
    assert changes.config == {"pretrain.learning_rate": [1e-3, 3e-3]}
    assert not changes.data and not changes.settings and not changes.code
    assert changes.unknown == ("The commit of a, b is not known: it stands in MLflow for models that `modelyard run` made.",)


def test_models_whose_records_are_gone_are_told_apart_by_identity(home: Path) -> None:
    changes = compare(pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", RIGHT)})).changes
    assert changes.data == {"policy": ["a" * 32, "b" * 32]}
    assert changes.unknown[0] == "The record of policy of old is gone, so its options are not compared."


def test_other_data_is_named_by_its_part_with_its_counts(home: Path) -> None:
    for name, tokens in (("t1.dir", 100), ("t2.dir", 150)):
        stage(home, "data", {"name": "d", "tokens": {"path": "x", "identity": name}}, {}, figures={"tokens": {"train_tokens": tokens}})
    models = [stage(home, "pretrain", {"seed": 0}, {"tokens": name}) for name in ("t1.dir", "t2.dir")]
    folders = [evaluation(home, {"base": {"sums": answers("sums", RIGHT)}}, {"base": model}) for model in models]
    changes = compare([Report.read(folder, label=name) for folder, name in zip(folders, "ab", strict=True)]).changes
    assert changes.data == {"tokens": ["t1.dir", "t2.dir"]}
    assert changes.counts == {"tokens.train_tokens": [100, 150]} and not changes.config


def test_settings_of_the_evaluation_that_differ_are_a_warning(home: Path) -> None:
    reports = pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", RIGHT)}, evals={"limit": 20}, figures={"tasks": {"sums": "2.0"}})
    for report, limit, shots in zip(reports, (None, 20), (0, 5), strict=True):
        report.record.figures["settings"] = {"limit": limit, "fewshot": {"sums": shots}}
    comparison = compare(reports)
    assert "new and old were not asked alike: limit is 20 for the one and not set for the other." in comparison.warnings
    assert "new and old were not asked alike: the number of worked examples of sums is 5 for the one and 0 for the other." in comparison.warnings
    assert comparison.changes.settings == {"evals.limit": [None, 20]}
    assert any("version 1.0 of its definition, and 2.0" in warning for warning in comparison.warnings)
    assert comparison.changes.code["definition of sums"] == ["1.0", "2.0"]


def test_a_base_model_against_a_chat_model_is_a_warning(home: Path) -> None:
    told = {"settings": {"chat_template": {"base": False, "chat": True}}}
    folder = evaluation(home, {"base": {"sums": answers("sums", RIGHT)}, "chat": {"sums": answers("sums", BETTER)}}, figures=told)
    comparison = compare([Report.read(folder, "base", "base"), Report.read(folder, "chat", "chat")])
    assert comparison.warnings == ["chat and base were not asked alike: the chat template is used for the one and not used for the other."]


def test_commits_and_packages_that_differ_are_told(home: Path) -> None:
    reports = pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", RIGHT)})
    codes = [
        {"git_commit": commit, "uncommitted_changes": dirty, "packages": {"torch": "2.13.0", "numpy": numpy}}
        for commit, dirty, numpy in (("aaa", False, "2.3"), ("bbb", True, "2.4"))
    ]
    changes = compare([replace(report, code=code) for report, code in zip(reports, codes, strict=True)]).changes
    assert changes.code == {"git_commit": ["aaa", "bbb"], "uncommitted_changes": [False, True], "package numpy": ["2.3", "2.4"]}
    assert changes.unknown[-1].startswith("new: made with changes that were never committed")


def test_a_released_model_whose_evaluation_is_gone_is_compared_by_what_the_gate_kept(home: Path, tmp_path: Path) -> None:
    old, new = pair(home, {"quiz": quiz(1, 0.4), "sums": answers("sums", RIGHT)}, {"quiz": quiz(2, 0.7), "sums": answers("sums", BETTER)})
    evidence.keep(evidence.read(old.folder, "policy"), tmp_path / "gate")
    restored = compare([Report.restored(tmp_path / "gate", "a" * 32, "old", home / "stages"), new])
    whole = compare([old, new])
    assert {suite: row.against for suite, row in restored.suites.items()} == {suite: row.against for suite, row in whole.suites.items()}
    assert [row.against for row in restored.suites["quiz"].subjects] == [row.against for row in whole.suites["quiz"].subjects]
    flip = restored.flips["sums"][0]
    assert flip.outputs[0] is None and flip.outputs[1] and flip.question
    assert not restored.changes.settings and restored.changes.unknown[0].startswith("The evaluation of old is gone")
    assert "<em>not kept</em>" in page.page(restored)


# ---------------------------------------------------------------- bad input


def test_one_report_is_refused(home: Path) -> None:
    folder = evaluation(home, {"policy": {"sums": answers("sums", RIGHT)}})
    with pytest.raises(BadInput, match="a difference has two sides"):
        compare([Report.read(folder)])


def test_a_stage_without_scores_and_a_role_that_was_not_measured_are_refused(home: Path) -> None:
    identity = stage(home, "sft", {"seed": 0}, {})
    with pytest.raises(BadInput, match=r"the result of sft, which has no scores.*Give an evaluate folder"):
        Report.read(home / "stages" / f"sft-{identity[:16]}")
    folder = evaluation(home, {"policy": {"sums": answers("sums", RIGHT)}})
    with pytest.raises(BadInput, match=rf"did not measure a 'chat'.*It measured: policy. Write {folder.name}#policy"):
        Report.read(folder, "chat")


def test_items_that_were_changed_afterwards_are_refused(home: Path) -> None:
    reports = pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", BETTER)})
    path = reports[1].folder / "items/policy/sums.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("score"), "score", [[1.0] * 20]), path)
    with pytest.raises(BadInput, match=r"has other bytes than when it was made.*modelyard run"):
        compare(reports)
    path.unlink()
    with pytest.raises(BadInput, match="is missing"):
        compare(reports)


def test_items_without_a_column_are_refused(home: Path) -> None:
    reports = pair(home, {"sums": answers("sums", RIGHT)}, {"sums": answers("sums", BETTER)})
    path = reports[1].folder / "items/policy/sums.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["item"]), path)
    record = Record.read(reports[1].folder)
    from components.schema.records import File, file_md5

    kept = {**record.files, "items/policy/sums.parquet": File(md5=file_md5(path), size=path.stat().st_size)}
    record.model_copy(update={"files": kept}).write(reports[1].folder)
    with pytest.raises(BadInput, match=r"has no column item.*evaluate new again"):
        compare([reports[0], Report.read(reports[1].folder, label="new")])


# ---------------------------------------------------------------- page, pictures, terminal

HOSTILE = '<script src="http://evil.example/x.js">alert(1)</script>\x00\x1b[2J\u202egnp\ud800'.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


@pytest.fixture
def rich_comparison(home: Path) -> Comparison:
    """Three suites, one with subjects and hostile text, probes, perplexity, contamination."""
    first = {"quiz": quiz(1, 0.4), "sums": answers("sums", RIGHT), "code": answers("code", RIGHT)}
    hostile = [{**row, "question": HOSTILE, "output": HOSTILE, "prompt": HOSTILE * 200} for row in answers("code", BETTER)]
    second = {"quiz": quiz(2, 0.7), "sums": answers("sums", BETTER), "code": hostile}
    told = {"perplexity": {"policy": {"bits_per_byte": 1.25, "domains": {"web": {"bits_per_byte": 1.5}}}}, "probes": {"policy": {"safety": {"refused": 0.75}}}}
    comparison = compare(pair(home, first, second, figures=told))
    return replace(comparison, labels=["models:/<i>x@champion", "new [i] & better"])


def test_the_page_asks_nothing_of_anyone_and_shows_text_as_text(rich_comparison: Comparison) -> None:
    text = page.page(rich_comparison)
    assert "<script" not in text and "&lt;script src=" in text and "models:/&lt;i&gt;x@champion" in text
    assert "default-src 'none'" in text
    assert not re.search(r"""(?:src|href)=["'](?!#|data:,)""", text) and "url(" not in text and "@import" not in text
    assert not any(ord(character) < 32 and character != "\n" for character in text) and "\u202e" not in text


def test_the_page_is_the_same_bytes_twice_and_well_formed(rich_comparison: Comparison) -> None:
    text = page.page(rich_comparison)
    assert text == page.page(rich_comparison)
    for tag in ("details", "table", "section", "div", "tr", "svg", "dl", "span"):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag
    for word in ("bits_per_byte", "domains.web.bits_per_byte", "refused", "quiz, from the greatest gain", "Items won and lost", "What changed"):
        assert word in text


def test_what_stands_beside_the_page_holds_the_same_numbers(rich_comparison: Comparison, tmp_path: Path) -> None:
    page.write(rich_comparison, tmp_path / "out")
    numbers = json.loads((tmp_path / "out/comparison.json").read_text())
    assert numbers["suites"]["sums"]["against"][1]["difference"][0] == pytest.approx(0.25)
    items = pq.read_table(tmp_path / "out/items.parquet").to_pylist()
    assert len(items) == sum(map(len, rich_comparison.flips.values())) == sum(numbers["flips"].values())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "index.html", "comparison.json", "items.parquet", "scores.svg", "radar.svg", "subjects-quiz.svg",
    }  # fmt: skip
    for path in (tmp_path / "out").glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_bars_are_as_long_as_scores_are_high(rich_comparison: Comparison) -> None:
    rows = list(rich_comparison.suites.values())
    drawing = ElementTree.fromstring(pictures.bars("Suites", rows, rich_comparison.labels))
    widths = [float(rectangle.get("width")) for rectangle in drawing.iter("rect")]
    assert len(widths) == 2 * len(rows)
    assert widths == pytest.approx([pictures.SCORES * score.score for row in rows for score in row.scores], abs=0.01)


def test_a_better_model_is_drawn_to_the_right_of_zero(rich_comparison: Comparison) -> None:
    drawing = ElementTree.fromstring(pictures.bars("Suites", [rich_comparison.suites["sums"]], rich_comparison.labels))
    zero = next(float(line.get("x1")) for line in drawing.iter("line") if line.get("class") == "zero")
    (dot,) = drawing.iter("circle")
    assert float(dot.get("cx")) > zero + 10


def test_the_radar_reaches_as_far_as_the_scores(rich_comparison: Comparison) -> None:
    rows = list(rich_comparison.suites.values())
    drawing = ElementTree.fromstring(pictures.radar(rows, rich_comparison.labels))
    rings = [[tuple(map(float, point.split(","))) for point in ring.get("points").split()] for ring in drawing.iter("polygon")]
    rim, models = rings[3], rings[4:]
    centre = (sum(x for x, _ in rim) / 3, sum(y for _, y in rim) / 3)
    for model, ring in enumerate(models):
        for axis, point in enumerate(ring):
            assert math.dist(point, centre) / pictures.RADIUS == pytest.approx(rows[axis].scores[model].score, abs=1e-3)  # the rim stands for 1 here
    assert pictures.radar(rows[:2], rich_comparison.labels) is None


def test_the_terminal_says_the_verdicts_and_holds_no_control_characters(rich_comparison: Comparison) -> None:
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    terminal.show(rich_comparison, Console(file=out, width=200, force_terminal=False))
    text = out.getvalue()
    assert text.count("new [i] & better") >= 3  # brackets are text, not markup
    for word in ("new [i] & better: better than models:/<i>x@champion on quiz", "+0.250 [", "won", "lost", "quiz_a", "bits_per_byte"):
        assert word in text
    assert "\x1b" not in text and "\x00" not in text and "\u202e" not in text
