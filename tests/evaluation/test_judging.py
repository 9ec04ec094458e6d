"""Ratings against scipy and models whose strength is known; judges that are known to have a habit; people's sheets."""

from __future__ import annotations

import json
import math
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from components.evaluation import judging, rate
from components.evaluation.judging import Answers, by_judge, by_people, by_scores, request, write_sheet
from components.evaluation.ratings import Verdict, fit, ratings
from components.models.scoring import reward_model
from components.schema.config import BadInput
from components.schema.rating import RatingConfig
from tests.evaluation.conftest import make_tokenizer

STRENGTH = {"strong": 1.0, "middle": 0.2, "weak": -1.2}


def drawn(prompts: int, seed: int = 0, strength: dict[str, float] = STRENGTH) -> list[Verdict]:
    """Verdicts of a judge who follows Bradley and Terry exactly."""
    rng = np.random.default_rng(seed)
    return [
        Verdict(str(i), a, b, float(rng.random() < 1 / (1 + math.exp(strength[b] - strength[a])))) for i in range(prompts) for a, b in combinations(strength, 2)
    ]


def answers(count: int = 6) -> Answers:
    chats = [[{"role": "user", "content": f"Question {i}?"}] for i in range(count)]
    return Answers(
        chats, {"good": [f"good answer {i}" for i in range(count)], "bad": [f"bad {i}" for i in range(count)], "same": [f"bad {i}" for i in range(count)]}
    )


# ---------------------------------------------------------------- ratings


def test_the_fit_is_where_scipy_finds_the_greatest_likelihood() -> None:
    rng = np.random.default_rng(3)
    wins = rng.integers(0, 9, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    met = wins + wins.T > 0

    def loss(theta: np.ndarray) -> float:
        return -sum((wins[i, j] + 0.5 * met[i, j]) * -math.log1p(math.exp(theta[j] - theta[i])) for i in range(5) for j in range(5) if i != j)

    best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-9}).x
    assert fit(wins, met) == pytest.approx(best - best.mean(), abs=1e-5)
    assert fit(np.stack([wins, wins.T]), met)[1] == pytest.approx(fit(wins.T, met))


def test_two_models_have_the_log_odds_of_the_wins_with_half_a_win_each() -> None:
    found = ratings([Verdict(str(i), "a", "b", float(i < 7)) for i in range(10)], seed=0)
    assert found["a"].rating - found["b"].rating == pytest.approx(math.log(7.5 / 3.5))
    assert (found["a"].wins, found["b"].wins, found["a"].comparisons) == (0.7, 0.3, 10)
    assert found["a"].elo - found["b"].elo == pytest.approx(400 * math.log10(7.5 / 3.5))


def test_known_strengths_are_found_and_lie_in_their_intervals() -> None:
    found = ratings(drawn(2000), seed=0)
    assert list(found) == ["strong", "middle", "weak"]
    assert all(abs(found[name].rating - value) < 0.12 and found[name].low < value < found[name].high for name, value in STRENGTH.items())
    assert sum(rating.rating for rating in found.values()) == pytest.approx(0, abs=1e-9)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = [
        found[name].low <= STRENGTH[name] <= found[name].high
        for seed in range(60)
        for found in [ratings(drawn(80, seed), seed, resamples=300)]
        for name in STRENGTH
    ]
    assert 0.88 <= np.mean(held) <= 0.99


def test_verdicts_of_one_prompt_are_one_piece_of_evidence() -> None:
    few = drawn(60)
    wide = ratings([Verdict(v.prompt, v.first, v.second, v.preference) for v in few for _ in range(4)], seed=0)
    narrow = ratings([Verdict(f"{v.prompt}/{k}", v.first, v.second, v.preference) for v in few for k in range(4)], seed=0)
    assert wide["strong"].rating == pytest.approx(narrow["strong"].rating)
    assert wide["strong"].high - wide["strong"].low > 1.6 * (narrow["strong"].high - narrow["strong"].low)  # 2 = the root of 4


def test_ratings_depend_neither_on_the_order_nor_on_who_is_named_first() -> None:
    few = drawn(40)
    swapped = [Verdict(v.prompt, v.second, v.first, 1 - v.preference) for v in few]
    one, two = ratings(few, seed=5), ratings(swapped, seed=5)
    assert all(one[name] == pytest.approx(two[name]) for name in STRENGTH)


def test_a_model_that_never_lost_has_a_finite_rating_and_strangers_are_refused() -> None:
    found = ratings([Verdict(str(i), "a", "b", 1.0) for i in range(20)], seed=0)
    assert found["a"].rating == pytest.approx(math.log(20.5 / 0.5) / 2) and math.isfinite(found["a"].high)
    with pytest.raises(BadInput, match=r"c, d and a, b were never compared, not even through others.*Compare some of them on the same prompts"):
        ratings([Verdict("1", "a", "b", 1.0), Verdict("1", "c", "d", 1.0)], seed=0)


# ---------------------------------------------------------------- judges


def by_text(bias: float = 0.0, honest: float = 2.0):
    """A judge who likes `good`, and is drawn to what stands first by `bias` log-odds."""

    def prefer(chats):
        odds = []
        for chat in chats:
            first, second = chat[-1]["content"].split("Answer A: ")[1].split("Answer B: ")
            odds.append(honest * (("good" in first) - ("good" in second)) + bias)
        return [1 / (1 + math.exp(-one)) for one in odds]

    return prefer


@pytest.mark.parametrize(("at_once", "concurrency"), [(4, 1), (1, 3)])
def test_a_fair_judge_is_believed_and_equal_answers_are_a_draw(at_once: int, concurrency: int) -> None:
    judged = by_judge(answers(), by_text(), at_once, concurrency)
    assert {(v.first, v.second): v.preference for v in judged.verdicts} == {("good", "bad"): 1.0, ("good", "same"): 1.0, ("bad", "same"): 0.5}
    assert judged.figures["position_bias"] == pytest.approx(0) and judged.figures["orders_agree"] == 1.0 and judged.figures["unanswered"] == 0
    assert judged.figures["longer_wins"] == 1.0 and judged.figures["draws"] == pytest.approx(1 / 3)


def test_a_judge_who_looks_at_the_place_alone_decides_nothing() -> None:
    judged = by_judge(answers(), by_text(bias=9.0))
    assert all(verdict.preference == 0.5 for verdict in judged.verdicts)
    assert judged.figures["position_bias"] > 0.49 and judged.figures["orders_agree"] == 0.0
    assert max(abs(rating.rating) for rating in ratings(judged.verdicts, 0).values()) < 1e-9


def test_a_pair_without_an_answer_has_no_verdict() -> None:
    silent = by_text()
    judged = by_judge(answers(), lambda chats: [None if "Question 2" in chat[0]["content"] else vote for chat, vote in zip(chats, silent(chats), strict=True)])
    assert judged.figures["unanswered"] == 2 and len(judged.verdicts) == 18 - 2


def test_a_killed_judge_goes_on_where_it_was(tmp_path: Path) -> None:
    asked = []

    def counts(chats, dies_after=99):
        if len(asked) >= dies_after:
            raise KeyboardInterrupt
        asked.append(len(chats))
        return by_text()(chats)

    with pytest.raises(KeyboardInterrupt):
        by_judge(answers(), lambda chats: counts(chats, 4), keep=tmp_path / "votes")
    with (tmp_path / "votes").open("a") as file:
        file.write('["cut o')
    whole = by_judge(answers(), by_text())
    assert by_judge(answers(), counts, keep=tmp_path / "votes").verdicts == whole.verdicts
    assert sum(asked) == 2 * 12  # both orders of every pair that differs, each once


def test_a_judge_that_is_lost_is_not_asked_again_for_every_pair_that_is_left() -> None:
    calls = []

    def lost(chats):
        calls.append(len(chats))
        time.sleep(0.01)
        raise BadInput("the judge is gone")

    with pytest.raises(BadInput, match="the judge is gone"):
        by_judge(answers(60), lost, concurrency=2)
    assert len(calls) < 20  # of 120


def test_what_stands_in_a_conversation_is_shown_as_text() -> None:
    row = {"chat": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "answer_first": "one", "answer_second": "two"}
    (turn,), (other,) = request(row, swapped=False), request(row, swapped=True)
    assert turn["role"] == "user" and "System: Be brief.\n\nUser: Hi\n\nAnswer A: one\n\nAnswer B: two" in turn["content"]
    assert "Answer A: two\n\nAnswer B: one" in other["content"]


# ---------------------------------------------------------------- reward models


def test_a_reward_model_s_verdicts_are_those_of_its_scores_by_plain_transformers(tmp_path: Path) -> None:
    words = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        initializer_range=0.5,
        pad_token_id=words.pad_token_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"has no scale\.json, so it is no reward model"):
        reward_model(tmp_path)
    (tmp_path / "scale.json").write_text('{"mean": 0, "std": 1}')
    judged = by_scores(answers(), reward_model(tmp_path))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for row in judged.rows:
        chats = [[*row["chat"], {"role": "assistant", "content": row[f"answer_{side}"]}] for side in ("first", "second")]
        with torch.no_grad():
            by_hand = [model(**words.apply_chat_template(chat, return_tensors="pt", return_dict=True)).logits.item() for chat in chats]
        assert [row["score_first"], row["score_second"]] == pytest.approx(by_hand, abs=1e-5)
        assert row["preference"] == (0.5 if row["answer_first"] == row["answer_second"] else float(by_hand[0] > by_hand[1]))


# ---------------------------------------------------------------- people


def filled(sheet: Path, out: Path, judge: str = "") -> Path:
    """A person who ranks good answers first, and equal ones equal; the last row is left alone."""
    rows = [json.loads(line) for line in sheet.read_text().splitlines()]
    for row in rows[:-1]:
        good = [letter for letter, text in row["answers"].items() if "good" in text]
        row["ranking"] = [*good, sorted(set(row["answers"]) - set(good))]
        row["judge"] = judge
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def test_a_sheet_hides_who_said_what_and_its_rankings_find_it_again(tmp_path: Path) -> None:
    sheet, key = tmp_path / "sheet.jsonl", tmp_path / "key.jsonl"
    write_sheet(answers(30), sheet, key, seed=0)
    rows = [json.loads(line) for line in sheet.read_text().splitlines()]
    assert all(set(row) == {"row", "conversation", "answers", "ranking"} and "good" not in json.dumps(list(row["answers"])) for row in rows)
    first = [next(letter for letter, text in row["answers"].items() if "good" in text) for row in rows]
    assert {"A", "B", "C"} == set(first)  # no letter belongs to a model
    judged = by_people(filled(sheet, tmp_path / "filled.jsonl"), key)
    assert judged.figures["comparisons"] == 29 * 3 and "people_agree" not in judged.figures
    assert {tuple(verdict[1:]) for verdict in judged.verdicts} == {("bad", "good", 0.0), ("good", "same", 1.0), ("bad", "same", 0.5)}


def test_two_people_s_agreement_is_told(tmp_path: Path) -> None:
    rows = [
        {"row": 0, "ranking": ["a", "b"], "judge": "x"},
        {"row": 0, "ranking": ["b", "a"], "judge": "y"},
        {"row": 1, "ranking": ["a", "b"], "judge": "x"},
        {"row": 1, "ranking": ["a", "b"], "judge": "y"},
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = by_people(tmp_path / "r.jsonl")
    assert judged.figures == {"comparisons": 4, "people_agree": 0.5}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"row": 0, "ranking": ["A", "Q"]}', r"line 1 ranks 'Q', which is no letter of its answers \(A, B\). Correct the line"),
        ('{"row": 0, "ranking": ["A"]}', r"line 1 has the ranking \['A'\], which is no order of two or more answers"),
        ('{"row": 0, "ranking": ["A", "A"]}', "no order of two or more answers"),
        ('{"row": 0, "ranking": "A>B"}', "no order of two or more answers"),
        ('{"row": 0, "ranking": []}', "holds no ranking, so nothing can be rated"),
        ("{", "is not readable as JSON lines"),
    ],
)
def test_a_sheet_that_cannot_be_read_is_told_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "r.jsonl").write_text(line + "\n")
    (tmp_path / "k.jsonl").write_text('{"row": 0, "A": "x", "B": "y"}\n')
    with pytest.raises(BadInput, match=message):
        by_people(tmp_path / "r.jsonl", tmp_path / "k.jsonl")


# ---------------------------------------------------------------- the stage


def given(**more) -> rate.Given:
    said = answers(5)

    def writer(name: str):
        return lambda: (
            lambda chats, seed: [
                None if "Question 4" in chat[0]["content"] and name == "bad" else said.by_model[name][int(chat[0]["content"].split()[1][:-1])] for chat in chats
            ]
        )

    return rate.Given(said.prompts, {name: writer(name) for name in said.by_model}, **more)


def config(**judge) -> RatingConfig:
    return RatingConfig.model_validate({"name": "x", "models": {"good": "g", "bad": "b", "same": "s"}, "prompts": "p", "judge": judge, "batch_size": 2})


def test_a_run_leaves_answers_verdicts_and_ratings(tmp_path: Path) -> None:
    outcome = rate.run(config(critic={"model": "m"}), given(prefer=by_text()), tmp_path)
    assert outcome.figures["prompts"] == 4 and outcome.figures["prompts_left_out"] == 1
    assert next(iter(outcome.figures["ratings"])) == "good" and outcome.figures["judge"]["orders_agree"] == 1.0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 4 and len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 12
    assert "| good | +" in (tmp_path / "report.md").read_text()
    json.dumps(outcome.model_dump(mode="json"), allow_nan=False)
    silent = given(prefer=lambda chats: [None] * len(chats))
    with pytest.raises(BadInput, match=r"said which answer is better of none of 4 pairs.*take another judge"):
        rate.run(
            config(critic={"model": "m"}),
            rate.Given(silent.prompts, {k: v for k, v in silent.writers.items() if k != "same"}, prefer=silent.prefer),
            tmp_path / "silent",
        )


def test_people_get_a_sheet_and_their_rankings_become_ratings(tmp_path: Path) -> None:
    notes: list[dict] = []
    first = rate.run(config(people={}), given(), tmp_path / "1", notes.append)
    assert "ratings" not in first.figures and "judge.people.rankings" in notes[-1]["text"]
    sheet = filled(tmp_path / "1/sheet.jsonl", tmp_path / "filled.jsonl")
    second = rate.run(config(people={"rankings": str(sheet)}), given(rankings=sheet), tmp_path / "2")
    assert next(iter(second.figures["ratings"])) == "good" and second.figures["judge"]["comparisons"] == 9


def test_where_things_lie_is_no_part_of_what_is_asked() -> None:
    one = config(critic={"model": "m", "url": "http://127.0.0.1:1/v1"})
    other = RatingConfig.model_validate(
        {
            **one.model_dump(),
            "prompts": "q",
            "name": "y",
            "models": {"good": "1", "bad": "2", "same": "3"},
            "judge": {"critic": {"model": "m", "url": "http://localhost:2/v1", "retries": 1}},
        }
    )
    assert one.parted()[0] == other.parted()[0]
    assert RatingConfig.joined(*one.parted()) == one and RatingConfig.joined(*other.parted()) == other
    assert one.parted()[0] != config(critic={"model": "another", "url": "http://127.0.0.1:1/v1"}).parted()[0]
    assert config(reward="r").parted()[0] != config(people={}).parted()[0]


def test_exactly_one_judge_decides(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="judge has nobody: exactly one of reward, critic and people"):
        config()
    with pytest.raises(ValueError, match="judge has reward, people"):
        config(reward="r", people={})
    (tmp_path / "r.yaml").write_text("name: x\nmodels: {a: b}\njudge: {reward: r}\nprompts: p\n")
    with pytest.raises(BadInput, match=r"rating: .*r\.yaml has 1 problem"):
        RatingConfig.load(tmp_path / "r.yaml")
    assert RatingConfig.load(Path(judging.__file__).parents[2] / "recipes/rating/tiny.yaml").judge.critic
