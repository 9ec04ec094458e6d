"""Questions are the distinct prompts of a dataset, with the reference and the tests that verifiers need."""

import json

import pytest

from components.models.build import load_tokenizer
from components.schema.config import BadInput
from components.schema.posttraining import PromptsConfig
from components.training.align import Given
from components.training.prompts import read_questions


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


CHATS = [
    {"messages": [user("1 plus 2"), assistant("is 3")], "kind": "sum"},
    {"messages": [user("def f(x):"), assistant("    return x")], "kind": "code", "tests": "assert f(1) == 1"},
    {"messages": [user("1 plus 2"), assistant("is three")], "kind": "sum"},
    {"messages": [user("hello"), assistant("cat"), user("and"), assistant("mat")], "kind": "talk"},
    {"messages": [assistant("the cat sat")], "kind": "talk"},
]
PAIRS = [{"prompt": [user(prompt)], "chosen": "a", "rejected": "b", "kind": "style"} for prompt in ("the cat", "the mat", "the cat")]


@pytest.fixture
def words(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


@pytest.fixture
def given(tmp_path):
    for name, rows in (("chats", CHATS), ("preferences", PAIRS)):
        (tmp_path / name).mkdir()
        for split in ("train", "heldout"):
            (tmp_path / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Given(tmp_path, {}, tmp_path / "preferences", tmp_path / "chats", lambda programs: [False] * len(programs))


def test_a_chat_is_asked_up_to_its_last_answer_which_is_the_reference(words, given):
    questions = read_questions(PromptsConfig(source="chats"), given, words, "train", 26)
    assert [(q.text, q.answer, q.tests, q.kind) for q in questions] == [
        ("1 plus 2", "is 3", None, "sum"),
        ("def f(x):", "    return x", "assert f(1) == 1", "code"),
        ("and", "mat", None, "talk"),
    ]
    assert words.decode(questions[2].ids) == "<|user|>hello<|end|><|assistant|>cat<|end|><|user|>and<|end|><|assistant|>"
    assert list(questions[2].messages) == CHATS[3]["messages"][:3]


def test_pairs_give_each_prompt_once_and_no_reference(words, given):
    questions = read_questions(PromptsConfig(), given, words, "heldout", 26)
    assert [(q.text, q.answer) for q in questions] == [("the cat", None), ("the mat", None)]
    assert len(read_questions(PromptsConfig(), given, words, "heldout", 26, at_most=1)) == 1


def test_only_the_kinds_that_are_named_are_asked(words, given):
    assert {q.kind for q in read_questions(PromptsConfig(source="chats", kinds=("sum", "code")), given, words, "train", 26)} == {"sum", "code"}
    with pytest.raises(BadInput, match=r"no prompt of kinds \['rhyme'\] \(its kinds: \['code', 'sum', 'talk'\]\).*Correct prompts.kinds"):
        read_questions(PromptsConfig(source="chats", kinds=("rhyme",)), given, words, "train", 26)


def test_prompts_that_leave_no_room_are_left_out_and_none_at_all_is_an_error(words, given):
    lengths = sorted(len(q.ids) for q in read_questions(PromptsConfig(source="chats"), given, words, "train", 26))
    assert len(read_questions(PromptsConfig(source="chats"), given, words, "train", lengths[1])) == 2
    with pytest.raises(BadInput, match=r"none of the 3 prompts of .* fits 2 tokens.*Lower max_new_tokens"):
        read_questions(PromptsConfig(source="chats"), given, words, "train", 2)


@pytest.mark.parametrize("row", [{"text": "a", "label": "b"}, {"messages": [{"role": "user"}]}, {"messages": "cat"}], ids=str)
def test_a_row_that_is_no_chat_is_refused_with_its_file(words, given, row):
    (given.chats / "train.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(CHATS[0]) + "\n")
    with pytest.raises(BadInput, match=r"chats/train.jsonl has a row without a proper `messages`"):
        read_questions(PromptsConfig(source="chats"), given, words, "train", 26)
