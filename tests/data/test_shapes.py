"""Recognising rows by their shape and converting them: every shape of the table, and what is refused with which reason."""

import json

import pytest

from components.data.dialogue.shapes import CHATS, PREFERENCES, convert, listed
from components.data.dialogue.turns import Unfit

U, A, S = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))
HUMAN, GPT = {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
PKU = {
    "prompt": "p", "response_0": "full", "response_1": "short", "prompt_source": "x", "is_response_0_safe": False, "is_response_1_safe": True,
    "response_0_severity_level": 2, "response_1_severity_level": 0, "response_0_sha256": "0f",
}  # fmt: skip


def chat_of(row: dict) -> list[tuple[str, str]]:
    _, (item,), _ = convert(row, CHATS)
    return [(message["role"][0], message["content"]) for message in item["messages"]]


def pair_of(row: dict) -> tuple:
    _, (item,), _ = convert(row, PREFERENCES)
    return [(message["role"][0], message["content"]) for message in item["prompt"]], item["chosen"], item["rejected"]


CHAT_ROWS = {
    "openai_messages": [
        ({"messages": [S, U, A, U, A]}, "s:s u:u a:a u:u a:a"),
        ({"messages": [{"role": "developer", "content": "d"}, {"role": "user", "content": [{"type": "text", "text": "p1"}, {"type": "text", "text": "p2"}]}, A]}, "s:d u:p1p2 a:a"),
        ({"prompt": "u", "prompt_id": "7", "messages": [U, A], "chosen": [U, A], "rejected": [U, A]}, "u:u a:a"),
    ],
    "sharegpt": [
        ({"conversations": [HUMAN, GPT, HUMAN, {"from": "chatgpt", "value": "b"}]}, "u:u a:a u:u a:b"),
        ({"conversations": [{"from": "user", "value": "u"}, {"from": "bing", "value": "b"}], "system": "be brief"}, "s:be_brief u:u a:b"),
        ({"conversations": [{"from": "system", "value": "s"}, GPT, GPT, HUMAN, GPT], "id": "x"}, "s:s u:u a:a"),
        ({"conversations": [HUMAN, GPT, HUMAN]}, "u:u a:a"),
        ({"conversation": [U, A]}, "u:u a:a"),
    ],
    "alpaca": [
        ({"instruction": "Do", "input": "this", "output": "done"}, "u:Do\nthis a:done"),
        ({"instruction": "Do that", "input": "", "output": "done"}, "u:Do_that a:done"),
        ({"instruction": "Do", "output": "Human: a play\n\nAssistant: in one act"}, "u:Do a:Human:_a_play\n\nAssistant:_in_one_act"),
        ({"instruction": "c", "input": None, "output": "d", "system": "s", "history": [["a", "b"]]}, "s:s u:a a:b u:c a:d"),
    ],
    "dolly": [({"instruction": "Sum up", "context": "long", "response": "short", "category": "summary"}, "u:Sum_up\nlong a:short")],
    "kto": [({"prompt": "p", "completion": "c", "label": True}, "u:p a:c"), ({"prompt": [U], "completion": [A], "label": True}, "u:u a:a")],
    "prompt_completion": [
        ({"prompt": "p", "completion": "c"}, "u:p a:c"),
        ({"prompt": "p", "response": "r", "system": "s"}, "s:s u:p a:r"),
        ({"prompt": [S, U], "completion": [A]}, "s:s u:u a:a"),
    ],
    "question_answer": [({"question": "Why?", "answer": "Because."}, "u:Why? a:Because.")],
    "transcript": [({"chosen": HH + " So.", "rejected": HH + " No."}, "u:Hi a:Hello. u:Why? a:So."), ({"text": "Human: a\n\nAssistant: b"}, "u:a a:b")],
    "labelled": [({"text": "Good film.", "label": 1, "label_text": "positive"}, "u:Good_film. a:positive"), ({"premise": "p", "hypothesis": "h", "label": 2}, "u:p\nh a:2")],
    "squad": [({"context": "Ann lives in Ulm.", "question": "Where?", "answers": {"text": ["Ulm"], "answer_start": [13]}}, "u:Where?\nAnn_lives_in_Ulm. a:Ulm")],
}
PAIR_ROWS = {
    "hh_rlhf": [({"chosen": HH + " So.", "rejected": HH + " No\nway."}, "u:Hi a:Hello. u:Why? > So. < No\nway.")],
    "dpo": [
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "u:p > c < r"),
        ({"prompt": [S, U], "chosen": [{"role": "assistant", "content": "c"}], "rejected": [{"role": "assistant", "content": "r"}]}, "s:s u:u > c < r"),
        ({"prompt": "u", "chosen": [U, A], "rejected": [U, {"role": "assistant", "content": "r"}]}, "u:u > a < r"),
        ({"prompt": [S, U], "chosen": [U, A], "rejected": [U, {"role": "assistant", "content": "r"}]}, "s:s u:u > a < r"),
        ({"system": "", "question": "q", "chosen": "c", "rejected": "r"}, "u:q > c < r"),
        ({"system": "s", "instruction": "i", "input": "j", "chosen": "c", "rejected": "r", "history": [["x", "y"]]}, "s:s u:x a:y u:i\nj > c < r"),
        ({"prompt": HH, "chosen": "c", "rejected": "r"}, "u:Hi a:Hello. u:Why? > c < r"),
    ],
    "implicit_prompt": [({"chosen": [U, A, U, A], "rejected": [U, A, U, {"role": "assistant", "content": "r"}], "score_chosen": 1.0}, "u:u a:a u:u > a < r")],
    "sharegpt_pair": [
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "r"}}, "u:u > a < r"),
        ({"conversations": [GPT, HUMAN, GPT, HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "r"}, "system": "s"}, "s:s u:u a:a u:u > a < r"),
    ],
    "safe_rlhf": [
        ({**PKU, "better_response_id": 0, "safer_response_id": 1}, "u:p > full < short"),
        ({**PKU, "better_response_id": 1, "safer_response_id": 1}, "u:p > short < full"),
    ],
}  # fmt: skip


def told(turns: list[tuple[str, str]]) -> str:
    return " ".join(f"{role}:{content.replace(' ', '_')}" for role, content in turns)


@pytest.mark.parametrize("shape, row, wanted", [(shape, *case) for shape, cases in CHAT_ROWS.items() for case in cases])
def test_every_shape_of_chat_is_recognised_and_converted(shape, row, wanted):
    before = json.dumps(row)
    assert convert(row, CHATS)[0] == shape
    assert told(chat_of(row)) == wanted and json.dumps(row) == before


@pytest.mark.parametrize("shape, row, wanted", [(shape, *case) for shape, cases in PAIR_ROWS.items() for case in cases])
def test_every_shape_of_pair_is_recognised_and_converted(shape, row, wanted):
    assert convert(row, PREFERENCES)[0] == shape
    turns, chosen, rejected = pair_of(row)
    assert f"{told(turns)} > {chosen} < {rejected}" == wanted


def test_every_shape_of_the_table_has_a_row_here_and_stands_in_the_message():
    assert set(CHAT_ROWS) == {shape.name for shape in CHATS}
    assert {*PAIR_ROWS, "ranked"} == {shape.name for shape in PREFERENCES}
    for table in (CHATS, PREFERENCES):
        assert all(f"{shape.name} ({shape.columns})" in listed(table) and shape.source for shape in table)


def test_what_is_left_out_of_a_chat_is_said():
    assert convert({"conversations": [GPT, HUMAN, GPT, HUMAN]}, CHATS)[2] == ("answers_before_the_first_question_left_out", "questions_after_the_last_answer_left_out")
    assert convert({"messages": [S, U, A]}, CHATS)[2] == ()


@pytest.mark.parametrize(
    "row, reason, detail",
    [
        ({"text": "x"}, "no_known_shape", "columns are text: str"),
        ({}, "no_known_shape", "columns are none"),
        ({"messages": []}, "no_turns", "list without turns"),
        ({"messages": ["u", "a"]}, "turn_not_an_object", "turn 1 is of type str"),
        ({"messages": [U]}, "no_answer_to_a_question", "turns are user"),
        ({"messages": [S, A]}, "no_answer_to_a_question", "turns are system, assistant"),
        ({"messages": [U, U, A]}, "turns_do_not_alternate", "turns are user, user, assistant"),
        ({"messages": [U, A, S, U, A]}, "turns_do_not_alternate", "turns are user, assistant, system, user, assistant"),
        ({"messages": [U, {"role": "tool", "content": "a"}]}, "unknown_speaker", "turn 2 is of 'tool'"),
        ({"messages": [U, {"role": ["x"], "content": "a"}]}, "unknown_speaker", "turn 2 is of"),
        ({"messages": [U, {"content": "a"}]}, "unknown_speaker", "turn 2 is of 'None'"),
        ({"messages": [U, {"role": "assistant", "content": " "}]}, "empty_turn", "turn 2 (assistant) is empty"),
        ({"messages": [U, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "empty_turn", "turn 2 (assistant) is empty"),
        ({"messages": [U, {"role": "assistant", "content": 3}]}, "turn_not_text", "turn 2 (assistant) is of type int"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]}, "turn_with_parts_that_are_not_text", "part of type 'image_url'"),
        ({"messages": [U, {"role": "assistant", "content": "\ud800"}]}, "half_a_surrogate_pair", "turn 2 (assistant), character 0"),
        ({"instruction": "Do", "output": None}, "empty_answer", "answer is empty"),
        ({"instruction": " ", "output": "done"}, "empty_question", "instruction is empty"),
        ({"instruction": "Do", "input": 3, "output": "x"}, "question_not_text", "of type int"),
        ({"instruction": "a", "output": "b", "history": [["only one"]]}, "history_not_in_pairs", "only one"),
        ({"prompt": "p", "completion": "c", "label": False}, "labelled_as_a_bad_answer", "c"),
        ({"text": "Human: a\n\nHuman: b\n\nAssistant: c"}, "turns_do_not_alternate", "user, user, assistant"),
    ],
)
def test_a_chat_that_cannot_be_learnt_from_is_refused_with_its_reason(row, reason, detail):
    with pytest.raises(Unfit) as caught:
        convert(row, CHATS)
    assert caught.value.reason == reason and detail in caught.value.detail


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": "p", "chosen": "same", "rejected": "same"}, "sides_are_equal"),
        ({"prompt": "p", "chosen": "c", "rejected": "  "}, "empty_answer"),
        ({"prompt": "p", "chosen": "c", "rejected": None}, "empty_answer"),
        ({"prompt": "p", "chosen": [], "rejected": "r"}, "no_turns"),
        ({"prompt": "p", "chosen": "c"}, "no_known_shape"),
        ({"prompt": [U, A], "chosen": "c", "rejected": "r"}, "prompt_does_not_end_with_the_user"),
        ({"prompt": [S], "chosen": "c", "rejected": "r"}, "prompt_does_not_end_with_the_user"),
        ({"conversations": [{"from": "alien", "value": "p"}], "chosen": "c", "rejected": "r"}, "unknown_speaker"),
        ({"chosen": [U, A], "rejected": [{"role": "user", "content": "v"}, A]}, "sides_part_before_the_last_turn"),
        ({"chosen": HH + " yes\n\nHuman: more", "rejected": HH + " no\n\nHuman: more"}, "sides_part_before_the_last_turn"),
        ({"prompt": "p", "chosen": [U], "rejected": [{"role": "user", "content": "v"}]}, "side_does_not_end_with_the_assistant"),
        ({"chosen": "The sky is blue", "rejected": "The sky is green"}, "no_known_shape"),
        ({"prompt": "p", "completion": "c", "label": True}, "no_known_shape"),
        ({"prompt": "p", "answers": ["a", "b"]}, "answers_without_ranks"),
        ({"prompt": "p", "answers": ["a"], "ranks": [1]}, "fewer_than_two_answers"),
        ({"prompt": "p", "answers": ["a", "b"], "ranks": [1]}, "not_one_rank_for_each_answer"),
        ({"prompt": "p", "answers": ["a", "b"], "ranks": [1, "2"]}, "ranks_are_not_numbers"),
        ({"prompt": "p", "answers": ["a", "b"], "scores": [1.0, float("nan")]}, "ranks_are_not_numbers"),
        ({"prompt": "p", "answers": ["a", "b"], "ranks": [1, 1]}, "answers_all_of_one_rank"),
        ({"prompt": "p", "answers": ["a", "a"], "ranks": [1, 2]}, "answers_all_of_one_rank"),
        ({"prompt": "p", "answers": ["", None], "ranks": [1, 2]}, "answers_all_of_one_rank"),
        ({"prompt": "p", "answers": ["a", "b"], "ranking": [1, 2]}, "ranking_is_no_order_of_the_answers"),
        ({"prompt": "p", "answers": ["a", 3], "ranks": [1, 2]}, "answer_not_text"),
        ({"prompt": "p", "answers": [], "ranks": []}, "fewer_than_two_answers"),
        ({**PKU, "better_response_id": 2, "safer_response_id": 0}, "response_id_is_neither_0_nor_1"),
        ({**PKU, "better_response_id": 0, "safer_response_id": None}, "response_id_is_neither_0_nor_1"),
        ({**PKU, "is_response_1_safe": "yes", "better_response_id": 0, "safer_response_id": 0}, "safe_is_not_two_truths"),
        ({**PKU, "response_1": "full", "better_response_id": 0, "safer_response_id": 1}, "sides_are_equal"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "safer": "c"}, "safer_names_no_side"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "safe": [True]}, "safe_is_not_two_truths"),
        ({**PKU, "better_response_id": 0, "safer_response_id": 0}, "the_safer_side_is_the_unsafe_one"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "margin": float("nan")}, "margin_is_no_number"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "margin": "wide"}, "margin_is_no_number"),
    ],
)
def test_a_pair_that_prefers_nothing_is_refused_with_its_reason(row, reason):
    with pytest.raises(Unfit) as caught:
        convert(row, PREFERENCES)
    assert caught.value.reason == reason


# ---------------------------------------------------------------- help and harm judged apart


@pytest.mark.parametrize("better, safer, wanted", [(0, 1, ("full", "rejected", [False, True])), (1, 1, ("short", "chosen", [True, False]))])
def test_the_safer_side_and_what_is_safe_are_told_of_chosen_and_rejected(better, safer, wanted):
    _, (pair,), _ = convert({**PKU, "better_response_id": better, "safer_response_id": safer}, PREFERENCES)
    assert (pair["chosen"], pair["safer"], pair["safe"]) == wanted


def test_a_pair_of_our_own_files_keeps_what_it_says_about_its_sides():
    said = {"margin": 0.5, "safer": "rejected", "safe": [False, True]}
    _, (pair,), _ = convert({"prompt": [U], "chosen": "c", "rejected": "r", "kind": "safety", **said}, PREFERENCES)
    assert {name: pair[name] for name in said} == said
    _, (plain,), _ = convert({"prompt": [U], "chosen": "c", "rejected": "r", "margin": None, "safer": None}, PREFERENCES)
    assert set(plain) == {"prompt", "chosen", "rejected"}


# ---------------------------------------------------------------- K ranked answers


def ranked(**row) -> list[dict]:
    shape, items, _ = convert({"prompt": "p", **row}, PREFERENCES)
    assert shape == "ranked" and all(item["prompt"] == [{"role": "user", "content": "p"}] for item in items)
    return items


@pytest.mark.parametrize(
    "row",
    [
        {"answers": ["b", "a", "d", "c"], "ranks": [2, 1, 4, 3]},
        {"responses": ["b", "a", "d", "c"], "scores": [7.5, 9, -1, 2]},
        {"completions": ["b", "a", "d", "c"], "ranking": [1, 0, 3, 2]},
        {"answers": [{"answer": text, "rank": rank, "model": "m"} for text, rank in (("b", 2.0), ("a", 1.0), ("d", 7.0), ("c", 3.0))]},
        {"completions": [{"response": text, "fine-grained_score": score, "overall_score": 10} for text, score in (("b", 4.5), ("a", 4.75), ("d", 1), ("c", 2))]},
        {"answers": [[{"role": "assistant", "content": text}] for text in "badc"], "ranks": [2, 1, 4, 3]},
    ],
)
def test_every_way_to_rank_gives_the_same_pairs(row):
    pairs = ranked(**row)
    assert [(p["chosen"], p["rejected"], *p["ranks"]) for p in pairs] == [
        ("a", "b", 1, 2), ("a", "c", 1, 3), ("a", "d", 1, 4), ("b", "c", 2, 3), ("b", "d", 2, 4), ("c", "d", 3, 4),
    ]  # fmt: skip
    assert {p["of"] for p in pairs} == {4} and len({p["ranking"] for p in pairs}) == 1


def test_equal_answers_are_not_compared_and_share_a_rank():
    pairs = ranked(answers=["a", "b", "c", "d"], scores=[5, 5, 3, 1])
    assert [(p["chosen"], p["rejected"], *p["ranks"]) for p in pairs] == [("a", "c", 1, 2), ("a", "d", 1, 3), ("b", "c", 1, 2), ("b", "d", 1, 3), ("c", "d", 2, 3)]


def test_empty_and_repeated_answers_are_left_out_and_said():
    _, pairs, changes = convert({"prompt": "p", "answers": ["a", "b", "", "a"], "ranks": [3, 2, 1, 1]}, PREFERENCES)
    assert [(p["chosen"], p["rejected"], *p["ranks"], p["of"]) for p in pairs] == [("a", "b", 1, 2, 2)]
    assert changes == ("empty_or_repeated_answers_left_out",)


@pytest.mark.parametrize("ranks", [list(range(30)), [i // 7 for i in range(30)], [min(i, 1) for i in range(30)], [max(i, 28) for i in range(30)]])
def test_many_answers_give_a_chain_from_which_the_whole_ranking_comes_back(ranks):
    pairs = ranked(answers=[f"answer {i}" for i in range(30)], ranks=ranks)
    assert len(pairs) < 40 and all(worse == better + 1 for better, worse in (p["ranks"] for p in pairs))
    back = {text: rank for p in pairs for text, rank in zip((p["chosen"], p["rejected"]), p["ranks"], strict=True)}
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)), start=1)}
    assert back == {f"answer {i}": places[rank] for i, rank in enumerate(ranks)} and pairs[0]["of"] == 30


def test_rankings_of_one_prompt_are_told_apart_and_the_order_of_columns_is_not():
    first, again, other = (ranked(answers=a, ranks=r)[0]["ranking"] for a, r in ((["a", "b"], [1, 2]), (["b", "a"], [2, 1]), (["a", "b"], [2, 1])))
    assert first == again != other
