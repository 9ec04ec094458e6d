"""What pages make of figures and of others' words: intervals, verdicts, clusters, graphs, Markdown."""

from __future__ import annotations

import json
import time

import pandas as pd
import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[dashboard]'")

from dashboards import look
from dashboards.screens import chat, compare, data, leaderboard
from dashboards.screens import releases as page
from dashboards.services import web
from dashboards.services.releases import Node, Version, of_model


def version(model: str, number: int, score: float, items: int = 100, **more: object) -> Version:
    return Version(model, number, 0.0, "run", scores={"suite": {"metric": "acc", "score": score, "stderr": 0.0, "items": items}}, **more)  # type: ignore[arg-type]


def test_a_perfect_score_on_few_items_still_has_an_interval() -> None:
    row = leaderboard.row(version("a", 1, 1.0, items=10), "suite")
    assert row["high"] == 1.0
    assert 0.6 < row["low"] < 0.9


def test_the_leaderboard_shows_each_models_best_version_and_its_champion_or_every_one() -> None:
    found = [version("a", 1, 0.4), version("a", 2, 0.7), version("b", 1, 0.6), version("a", 3, 0.5, aliases=("champion",)), Version("c", 1, 0.0, "run")]
    assert [row["name"] for row in leaderboard.ranked(found, "suite", every=False)] == ["a 2", "b 1", "a 3"]
    assert [row["name"] for row in leaderboard.ranked(found, "suite", every=True)] == ["a 2", "b 1", "a 3", "a 1"]


def test_what_was_only_measured_beside_a_model_is_not_what_it_was_made_of() -> None:
    line = {"sft": {"base": "pretrain"}, "ppo": {"chat": "sft"}, "evaluate": {"chat": "sft", "policy": "ppo"}, "pretrain": {}}
    nodes = {"release": Node("stage", "release", "release", inputs={"model": "sft", "report": "evaluate"}), **{name: Node("stage", name, name, inputs=inputs) for name, inputs in line.items()}}
    assert set(of_model(nodes)) == {"sft", "pretrain"}
    assert of_model({}) == {}


def items(*scores: float) -> pd.DataFrame:
    return pd.DataFrame({"suite": "suite", "key": [str(place) for place in range(len(scores))], "score": scores})


def test_two_models_are_compared_on_the_items_that_both_have() -> None:
    found, how = compare.difference("suite", items(*[0.0] * 40), items(*[1.0] * 40, *[0.0] * 60)) or (None, "")
    assert how == "paired, 40 items"
    assert found is not None and found.difference == 1.0 and found.low > 0.8


def test_without_items_the_comparison_says_that_it_is_not_paired_and_is_wider() -> None:
    first, second = version("a", 1, 0.5, 100), version("b", 1, 0.6, 100)
    for one in (first, second):
        one.scores["suite"]["stderr"] = 0.05
    row = compare.row("suite", first, second, None, None)
    assert row["how"] == "not paired"
    assert row["verdict"] == "not told apart"
    assert row["low"] == pytest.approx(0.1 - 1.96 * 0.05 * 2**0.5, abs=1e-3)


def test_the_difference_is_second_less_first_and_the_verdict_names_the_better_one() -> None:
    better, worse = items(*[1.0] * 40), items(*[0.0] * 40)
    assert compare.row("suite", version("a", 1, 0.0), version("b", 1, 1.0), worse, better)["verdict"] == "second is better"
    assert compare.row("suite", version("a", 1, 1.0), version("b", 1, 0.0), better, worse)["verdict"] == "first is better"


def test_clusters_are_found_by_kind_domain_and_words_taken_literally() -> None:
    table = pd.DataFrame({"cluster": [0, 0, 1, 1], "kind": [None, "exact", None, "near"], "domain": ["web", "web", "notes", "notes"], "excerpt": ["a(b", "a", "c", "d"]})
    assert data.chosen(table, "near", [], "") == [1]
    assert data.chosen(table, "all", ["web"], "") == [0]
    assert data.chosen(table, "all", [], "A(B") == [0]


def test_a_name_that_is_code_in_graphviz_stays_a_name() -> None:
    hostile = '"] ; evil [label="x'
    graph = page.dot({"1": Node("stage", hostile, "1", inputs={"data": "2"}), "2": Node("data", "tokens", "2")})
    assert json.dumps(hostile) in graph
    assert '"2" -> "1"' in graph


def test_nothing_in_others_words_is_a_mark_of_markdown() -> None:
    assert look.plain("[a](http://x) **b** :red[c]") == "\\[a\\]\\(http\\://x\\) \\*\\*b\\*\\* \\:red\\[c\\]"


def test_spans_of_time_are_written_in_their_two_largest_units() -> None:
    assert [look.span(s) for s in (5, 125, 3 * 3600 + 1200, 50 * 3600)] == ["5 s", "2 min 5 s", "3 h 20 min", "2 d 2 h"]
    assert [look.ago(time.time() - s) for s in (3, 125, 7300, 90_000)] == ["just now", "2 min ago", "2 h ago", "1 d ago"]


def test_each_side_of_a_chat_remembers_its_own_answers_only() -> None:
    told = [{"asked": "hi", "answers": [{"text": "one"}, {"text": ""}]}]
    assert [one["content"] for one in chat.messages(told, 0, "be kind", "more")] == ["be kind", "hi", "one", "more"]
    assert [one["content"] for one in chat.messages(told, 1, "", "more")] == ["more"]


def test_a_reader_from_elsewhere_is_sent_to_the_name_by_which_they_came() -> None:
    assert web.seen_from("http://127.0.0.1:5000", "yard.example.org:8501") == "http://yard.example.org:5000"
    assert web.seen_from("http://mlflow.example.org:5000", "yard.example.org:8501") == "http://mlflow.example.org:5000"


def test_questions_that_ask_several_at_once_themselves_do_not_wait_for_each_other() -> None:
    def inner() -> int:
        return sum(web.at_once(*[lambda: 1] * 4))

    assert web.at_once(*[inner] * (3 * web.AT_ONCE)) == [4] * (3 * web.AT_ONCE)


def test_answers_of_questions_asked_at_once_keep_their_order_and_the_first_error_is_raised() -> None:
    assert web.at_once(lambda: 1, lambda: 2, lambda: 3) == [1, 2, 3]
    with pytest.raises(web.Away, match="gone"):
        web.at_once(lambda: 1, lambda: (_ for _ in ()).throw(web.Away("gone")))
