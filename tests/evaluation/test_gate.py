"""The gate's decision, by hand-worked cases and by properties over random ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from components.evaluation import evidence
from components.evaluation.evidence import Evidence, Items
from components.evaluation.gate import Decision, decide
from components.schema.config import BadInput
from components.schema.gate import GateConfig, NoiseFloor, Policy, Spread
from components.schema.records import File, Record, file_md5

POLICIES = Path(__file__).parents[2] / "recipes/policies"


def suite(*scores: float, overlap: float = np.nan) -> Items:
    return evidence.of_scores({f"{i:05d}": score for i, score in enumerate(scores)}, overlap)


def binary(won: int, lost: int, right: int = 0, wrong: int = 0) -> tuple[Items, Items]:
    """Items of a challenger and a champion."""
    return suite(*[1.0] * won, *[0.0] * lost, *[1.0] * right, *[0.0] * wrong), suite(*[0.0] * won, *[1.0] * lost, *[1.0] * right, *[0.0] * wrong)


def measured(items: dict[str, Items], settings: dict[str, Any] | None = None, **figures: Any) -> Evidence:
    scores = {name: {"metric": "acc", "score": float(one.scores.mean()), "stderr": 0.0, "items": len(one.keys)} for name, one in items.items()}
    return Evidence(scores, items, figures, settings or {})


def both(**pairs: tuple[Items, Items]) -> tuple[Evidence, Evidence]:
    return measured({name: pair[0] for name, pair in pairs.items()}), measured({name: pair[1] for name, pair in pairs.items()})


def score(value: float, stderr: float = 0.05, metric: str = "acc", **more: Any) -> dict[str, Any]:
    return {"score": value, "stderr": stderr, "metric": metric, **more}


def verdicts(decision: Decision) -> dict[str, str]:
    return {c.suite: c.verdict for c in decision.comparisons}


BETTER, SAME, WORSE, FEW = binary(60, 20, 600, 320), binary(20, 20, 600, 360), binary(20, 90, 500, 390), binary(2, 3, 20, 15)


# ---------------------------------------------------------------- the first release, floors and limits


def test_the_first_model_is_promoted_where_every_floor_holds() -> None:
    decision = decide(Evidence({"a": score(0.5)}), None, Policy(minimum_scores={"a": 0.5}))
    assert decision.action == "promote"
    assert decision.reason == "first release: there is no champion yet, and every floor and limit holds (a)"


def test_the_first_model_is_held_below_a_floor() -> None:
    decision = decide(Evidence({"a": score(0.49)}), None, Policy(minimum_scores={"a": 0.5}))
    assert decision.action == "hold" and "a 0.490 is below its floor 0.5" in decision.reason


def test_the_first_model_may_be_for_a_person_to_release() -> None:
    assert decide(Evidence({"a": score(0.5)}), None, Policy(first="ask")).reason.startswith("a person is asked: first release: there is no champion yet")


def test_a_floor_on_a_suite_that_was_not_measured_holds() -> None:
    decision = decide(Evidence({"a": score(0.9)}), None, Policy(minimum_scores={"b": 0.1}))
    assert decision.action == "hold" and "b was not measured (the policy names it)" in decision.reason


def test_nothing_measured_is_never_promoted() -> None:
    for champion in (None, Evidence({}), both(a=SAME)[1]):
        assert decide(Evidence({}), champion, Policy(improvement="none")).action == "hold"


@pytest.mark.parametrize(
    ("path", "limit", "sentence"),
    [
        ("probes.refusals.refused_harmful", {"least": 0.9}, "probes.refusals.refused_harmful is 0.8 and must be at least 0.9"),
        ("perplexity.bits_per_byte", {"most": 1.0, "least": 0.5}, "perplexity.bits_per_byte is 1.2 and must be at least 0.5 and at most 1"),
        ("latency.ms_per_token", {"most": 50}, "latency.ms_per_token must be at most 50 and was not measured"),
        ("scores.a.score", {"least": 1.0}, "scores.a.score is 0.66 and must be at least 1"),
        ("contamination", {"most": 0.1}, "contamination is 0.25 and must be at most 0.1"),
        ("contamination.a", {"most": 0.1}, "contamination.a is 0.25 and must be at most 0.1"),
        ("perplexity.bits_per_byte", {"most": 2.0}, ""),
        ("contamination", {"most": 0.25}, ""),
    ],
)
def test_a_hard_limit_holds_whatever_the_scores_say(path: str, limit: dict[str, float], sentence: str) -> None:
    mine, theirs = both(a=BETTER)
    mine = Evidence(
        {"a": {**mine.scores["a"], "clean": {"items": 75}, "contaminated": {"items": 25}}}, mine.items, {"probes": {"refusals": {"refused_harmful": 0.8}}, "perplexity": {"bits_per_byte": 1.2}}
    )
    decision = decide(mine, theirs, Policy(limits={path: limit}))
    assert decision.action == ("hold" if sentence else "promote")
    assert sentence in decision.reason and path in decision.limits


def test_contamination_that_nobody_looked_for_is_not_none() -> None:
    decision = decide(*both(a=BETTER), Policy(limits={"contamination": {"most": 1.0}}))
    assert decision.action == "hold" and "contamination must be at most 1 and was not measured" in decision.reason


# ---------------------------------------------------------------- against a champion


def test_a_better_suite_and_none_worse_is_promoted_with_the_numbers() -> None:
    decision = decide(*both(a=BETTER, b=SAME), Policy())
    assert (decision.action, verdicts(decision)) == ("promote", {"a": "better", "b": "no worse"})
    a = decision.comparisons[0]
    assert (a.items, a.won, a.lost, a.difference) == (1000, 60, 20, pytest.approx(0.04))
    assert a.p_better == pytest.approx(2 * stats.binomtest(60, 80, alternative="greater").pvalue)  # Holm over two suites
    assert "a is better: 0.620 -> 0.660, difference +0.040 in [+0.0" in decision.reason and "b at least -0.011 (margin 0.05)" in decision.reason


def test_a_model_that_is_as_good_is_held_for_want_of_a_gain_unless_none_is_asked_for() -> None:
    for policy, action in ((Policy(), "hold"), (Policy(no_gain="ask"), "ask"), (Policy(improvement="none"), "promote")):
        assert decide(*both(a=SAME), policy).action == action
    assert "no suite was shown to be better than the champion's" in decide(*both(a=SAME), Policy()).reason


def test_one_worse_suite_holds_whatever_the_others_gained() -> None:
    decision = decide(*both(a=BETTER, b=WORSE), Policy())
    assert (decision.action, verdicts(decision)) == ("hold", {"a": "better", "b": "worse"})
    assert "b is worse: 0.590 -> 0.520, difference -0.070" in decision.reason


def test_a_suite_worse_by_less_than_its_margin_passes() -> None:
    slightly = binary(40, 80, 3000, 1880)  # -0.008, significantly
    decision = decide(*both(a=BETTER, b=slightly), Policy())
    assert decision.comparisons[1].p_worse < 0.05 and verdicts(decision)["b"] == "no worse" and decision.action == "promote"
    assert decide(*both(a=BETTER, b=slightly), Policy(margins={"b": 0.001})).action == "hold"


def test_too_few_items_are_a_question_for_a_person() -> None:
    decision = decide(*both(a=BETTER, b=FEW), Policy())
    assert (decision.action, verdicts(decision)["b"]) == ("ask", "unclear")
    assert decision.reason.startswith("a person is asked: b may be worse by its margin 0.05, or may not: 0.575 -> 0.550") and "modelyard gate power" in decision.reason
    assert decide(*both(a=BETTER, b=FEW), Policy(unclear="hold")).action == "hold"


def test_a_suite_that_is_left_out_takes_no_part_and_is_said() -> None:
    decision = decide(*both(a=BETTER, b=WORSE), Policy(not_compared=("b",)))
    assert decision.action == "promote" and decision.reason.endswith("left out by the policy: b")


def test_named_gains_must_all_be_shown_and_by_so_much() -> None:
    case = both(a=BETTER, b=SAME)
    assert decide(*case, Policy(improvement={"a": 0.0})).action == "promote"
    assert decide(*case, Policy(improvement={"a": 0.02})).action == "promote"
    assert "a was not shown to be better by more than 0.03" in decide(*case, Policy(improvement={"a": 0.03})).reason
    assert decide(*case, Policy(improvement={"a": 0.0, "b": 0.0})).action == "hold"
    assert decide(*case, Policy(improvement={"c": 0.0})).action == "hold"


def test_many_suites_need_a_clearer_gain() -> None:
    barely = binary(40, 24, 600, 336)  # one-sided p 0.030
    assert decide(*both(a=barely), Policy()).action == "promote"
    assert decide(*both(a=barely, b=SAME, c=SAME), Policy()).action == "hold"
    assert decide(*both(a=barely, b=SAME, c=SAME), Policy(improvement={"a": 0.0})).action == "promote"


def test_a_suite_that_only_the_champion_has_holds_and_says_what_to_do() -> None:
    mine, theirs = both(a=BETTER, b=SAME)
    decision = decide(measured({"a": mine.items["a"]}), theirs, Policy())
    assert decision.action == "hold"
    assert "b was not measured (the champion has 0.620): add it to evals.suites, name it in policy.not_compared" in decision.reason


def test_a_suite_that_only_the_challenger_has_is_said_and_does_not_hold() -> None:
    mine, theirs = both(a=BETTER, b=SAME)
    decision = decide(mine, measured({"a": theirs.items["a"]}), Policy())
    assert decision.action == "promote" and decision.reason.endswith("the champion was not measured on b")


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [({"version": "1"}, {"version": "2"}, "another version of the task"), ({"fewshot": 5}, {"fewshot": 0}, "another number of worked examples")],
)
def test_a_suite_asked_in_another_way_is_not_compared_and_a_person_is_asked(mine: dict, theirs: dict, why: str) -> None:
    first, second = both(a=BETTER)
    decision = decide(measured(dict(first.items), {"a": mine}), measured(dict(second.items), {"a": theirs}), Policy())
    assert decision.action == "ask" and why in decision.reason


def test_scores_by_different_metrics_are_not_compared() -> None:
    decision = decide(Evidence({"a": score(0.9)}), Evidence({"a": score(0.1, metric="exact_match")}), Policy())
    assert decision.action == "ask" and "a cannot be compared: measured by acc, the champion by exact_match" in decision.reason


def test_a_model_of_which_nothing_can_be_compared_is_never_promoted_by_itself() -> None:
    mine, theirs = both(a=BETTER)
    for champion in (Evidence({}), measured({"b": theirs.items["a"]})):
        decision = decide(mine, champion, Policy(improvement="none", not_compared=("b",)))
        assert decision.action == "ask" and "no suite can be compared with the champion's" in decision.reason


# ---------------------------------------------------------------- which items


def test_items_are_joined_by_what_they_are_and_not_by_their_place() -> None:
    mine, theirs = BETTER
    order = np.random.default_rng(0).permutation(900)  # a hundred fewer, in another order
    fewer = Items(theirs.keys[order], theirs.scores[order], theirs.overlap[order])
    decision = decide(measured({"a": mine}), measured({"a": fewer}), Policy())
    kept = set(order.tolist())
    expected = [sum(mine.scores[i] > theirs.scores[i] for i in kept), sum(mine.scores[i] < theirs.scores[i] for i in kept)]
    (a,) = decision.comparisons
    assert [a.items, a.won, a.lost] == [900, *expected] and "900 items were answered by both, of 1000 and 900" in a.note


def test_without_items_the_scores_count_as_independent_samples_and_it_is_said() -> None:
    mine, theirs = both(a=BETTER)
    for challenger, champion, who in ((mine, Evidence(theirs.scores), "the champion's"), (Evidence(mine.scores), theirs, "the challenger's")):
        (a,) = decide(challenger, champion, Policy()).comparisons
        assert a.items is None and f"compared as independent samples, since {who} items are gone" in a.note
        # Agresti-Caffo by hand: shares (660 + 1) / 1002 and (620 + 1) / 1002
        error = np.sqrt(sum(p * (1 - p) / 1002 for p in (661 / 1002, 621 / 1002)))
        assert a.p_better == pytest.approx(stats.norm.sf(0.04 / error)) and a.low == pytest.approx(0.04 - 1.644854 * error, abs=1e-6)


def test_clean_items_only_leaves_out_what_either_model_has_seen() -> None:
    mine, theirs = BETTER
    held = np.zeros(1000)
    held[:30] = 0.5  # half of the won items stand in the challenger's training data
    also = np.zeros(1000)
    also[30:60] = 0.9  # the other half in the champion's
    case = measured({"a": mine._replace(overlap=held)}), measured({"a": theirs._replace(overlap=also)})
    decision = decide(*case, Policy(clean_only=True, no_gain="hold"))
    (a,) = decision.comparisons
    assert (a.items, a.won, a.lost, decision.action) == (940, 0, 20, "hold") and "60 contaminated items left out" in a.note
    assert decide(*case, Policy()).action == "promote"


def test_clean_items_cannot_be_told_where_nobody_looked() -> None:
    decision = decide(*both(a=BETTER), Policy(clean_only=True))
    assert decision.action == "ask" and "nobody looked for its items in the training data" in decision.reason


def test_a_score_that_is_no_mean_of_its_items_is_compared_by_itself() -> None:
    mine, theirs = both(a=BETTER)
    case = (Evidence({"a": score(2.0, 0.01, lower_is_better=True)}, mine.items), Evidence({"a": score(2.5, 0.01, lower_is_better=True)}, theirs.items))
    (a,) = decide(*case, Policy()).comparisons
    assert (a.verdict, a.difference) == ("better", pytest.approx(0.5)) and "its score is not the mean of its items" in a.note and "turned round" in a.note


def test_graded_scores_are_compared_by_the_bootstrap_and_never_counted_as_right_or_wrong() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.random(300) * 0.8
    case = both(a=(suite(*(theirs + 0.05 + rng.normal(0, 0.1, 300))), suite(*theirs)))
    assert decide(*case, Policy()).action == "promote"
    with pytest.raises(BadInput, match=r"policy.test is mcnemar.*a has graded scores.*Write test: auto, or bootstrap"):
        decide(*case, Policy(test="mcnemar"))


def test_bootstrap_and_mcnemar_agree_on_many_items() -> None:
    for pair in (BETTER, SAME, WORSE):
        (exact,), (drawn,) = (decide(*both(a=pair), Policy(test=test)).comparisons for test in ("mcnemar", "bootstrap"))
        assert exact.verdict == drawn.verdict and [drawn.low, drawn.high] == pytest.approx([exact.low, exact.high], abs=0.002)


# ---------------------------------------------------------------- noise


def test_noise_widens_everything() -> None:
    quiet, loud = (decide(*both(a=BETTER), Policy(), NoiseFloor(suites={"a": Spread(spread=spread, repeats=10)})) for spread in (0.0, 0.02))
    assert (quiet.action, loud.action, verdicts(loud)) == ("promote", "hold", {"a": "no worse"})
    (a,), (b,) = quiet.comparisons, loud.comparisons
    assert b.low < a.low < a.high < b.high and b.p_better > 0.05 > a.p_better and b.p_no_worse > a.p_no_worse


def test_noise_of_another_suite_changes_nothing() -> None:
    assert decide(*both(a=BETTER), Policy(), NoiseFloor(suites={"b": Spread(spread=0.5, repeats=3)})) == decide(*both(a=BETTER), Policy())


# ---------------------------------------------------------------- properties


def random_case(rng: random.Random) -> tuple[Evidence, Evidence]:
    pairs = {name: binary(*(rng.randint(0, 40) for _ in range(2)), rng.randint(1, 300), rng.randint(1, 200)) for name in rng.sample("abcd", rng.randint(1, 4))}
    return both(**pairs)


def test_random_cases_agree_with_the_rule_stated_anew() -> None:
    rng, seen = random.Random(0), set()
    for _ in range(400):
        challenger, champion = random_case(rng)
        policy = Policy(margin=rng.choice([0.02, 0.05, 0.2]), improvement=rng.choice(["any", "none"]), minimum_scores={"a": 0.6} if rng.random() < 0.3 else {})
        decision = decide(challenger, champion, policy)
        tested = [c for c in decision.comparisons if c.p_no_worse is not None]
        floors = all(name in challenger.scores and challenger.scores[name]["score"] >= least for name, least in policy.minimum_scores.items())
        harmless = all(c.low > -c.margin for c in tested)
        gains = [stats.binomtest(c.won, c.won + c.lost, alternative="greater").pvalue if c.won + c.lost else 1.0 for c in tested]
        gained = bool(gains) and min(gains) * len(gains) <= 0.05
        expected = "hold" if not floors else "promote" if harmless and (gained or policy.improvement == "none") else None
        if expected:
            assert decision.action == expected, decision
        else:
            assert decision.action != "promote", decision
        seen.add(decision.action)
    assert seen == {"promote", "hold", "ask"}


def test_one_more_item_won_never_turns_a_promotion_into_anything_else() -> None:
    rng = random.Random(1)
    promoted = 0
    for _ in range(300):
        won, lost, right, wrong = rng.randint(0, 60), rng.randint(0, 40), rng.randint(0, 400), rng.randint(1, 300)
        if decide(*both(a=binary(won, lost, right, wrong)), Policy()).action == "promote":
            promoted += 1
            assert decide(*both(a=binary(won + 1, lost, right, wrong - 1)), Policy()).action == "promote"
    assert promoted > 20


def test_swapping_the_models_turns_better_into_worse() -> None:
    rng = random.Random(2)
    for _ in range(100):
        challenger, champion = random_case(rng)
        one, other = decide(challenger, champion, Policy(margin=1e-6)), decide(champion, challenger, Policy(margin=1e-6))
        for c, d in zip(one.comparisons, other.comparisons, strict=True):
            assert (c.won, c.lost, c.p_better, c.p_worse) == pytest.approx((d.lost, d.won, d.p_worse, d.p_better))
            assert (c.verdict == "worse") == (d.p_better <= 0.05)


# ---------------------------------------------------------------- files


def an_evaluation(folder: Path, figures: dict[str, Any], items: Any) -> Path:
    import pandas as pd

    path = folder / "items/chat/a.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame(items).to_parquet(path)
    files = {"items/chat/a.parquet": File(md5=file_md5(path), size=path.stat().st_size)}
    Record(stage="evaluate", identity="0" * 32, revision=1, config={}, inputs={}, files=files, figures=figures).write(folder)
    return folder


ITEMS = {"task": ["t", "t", "s", "t"], "id": [2, 0, 0, 1], "item": ["x", "x", "x", "y"], "score": [1.0, 0.0, 1.0, None], "overlap": [0.5, None, 0.0, 0.0]}
FIGURES = {"scores": {"base": {}, "chat": {"a": score(2 / 3)}}, "perplexity": {"chat": {"bits_per_byte": 1.1}}, "tasks": {"a": "3.0"}, "settings": {"fewshot": {"a": 5}, "chat_template": {"chat": True}}}


def test_evidence_is_read_from_an_evaluation_and_kept_with_a_release(tmp_path: Path) -> None:
    found = evidence.read(an_evaluation(tmp_path / "evaluate", FIGURES, ITEMS), "chat")
    assert found.items["a"].keys.tolist() == ["s/x/0", "t/x/0", "t/x/1"] and found.items["a"].scores.tolist() == [1.0, 0.0, 1.0]
    assert found.items["a"].overlap.tolist() == pytest.approx([0.0, np.nan, 0.5], nan_ok=True)
    assert found.figure("perplexity.bits_per_byte") == 1.1 and found.figure("perplexity.nothing") is None
    assert found.settings["a"] == {"version": "3.0", "fewshot": 5, "max_new_tokens": None, "chat_template": True}
    evidence.keep(found, tmp_path / "kept")
    again = evidence.restore(tmp_path / "kept")
    assert (again.scores, again.figures, again.settings) == (found.scores, found.figures, found.settings)
    for one, other in zip(again.items["a"], found.items["a"], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_role_that_was_not_measured_is_named_with_those_that_were(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"measured no 'policy'.*It measured: base, chat"):
        evidence.read(an_evaluation(tmp_path / "evaluate", FIGURES, ITEMS), "policy")


# ---------------------------------------------------------------- policies


def test_the_default_policy_file_is_the_default() -> None:
    assert Policy.load(POLICIES / "default.yaml") == Policy()


def test_every_policy_can_be_read_and_named_in_a_recipe() -> None:
    for file in POLICIES.glob("*.yaml"):
        assert GateConfig(policy=str(file)).policy == Policy.load(file)


def test_a_policy_that_cannot_work_is_refused_with_all_its_problems(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("error_rate: 2\nimprovment: any\nlimits: {size.bytes: {}}\n")
    with pytest.raises(BadInput, match=r"has 3 problem\(s\)[\s\S]*error_rate[\s\S]*size.bytes: says neither least nor most[\s\S]*improvment"):
        Policy.load(file)
    file.write_text("- a\n")
    with pytest.raises(BadInput, match="holds list, not a mapping"):
        Policy.load(file)
    with pytest.raises(BadInput, match=r"nowhere\.yaml cannot be read"):
        Policy.load("nowhere.yaml")
    with pytest.raises(ValueError, match="asks for a gain on a, which not_compared leaves out"):
        Policy(improvement={"a": 0.1}, not_compared=("a",))
