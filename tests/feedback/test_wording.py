"""Principles and prompts as files, requests as words, labels out of replies."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from components.feedback import constitution, prompts, wording
from components.feedback.constitution import Constitution, Principle
from components.schema.config import BadInput

ROOT = Path(__file__).parents[2]
YAML = """
principles:
  - id: private
    principle: Nobody's home is told, in whatever words.
    preference: Which answer tells no home?
    weight: 2
  - {id: short, principle: An answer is short.}
"""
MARKDOWN = """# Our rules

They were agreed on in spring.

## Private
Nobody's home is told,
in whatever words.

Preference: Which answer
tells no home?

Weight: 2

## short

An answer is short.
"""


def of(tmp_path: Path, text: str, name: str = "c.yaml") -> Constitution:
    (tmp_path / name).write_text(text)
    return constitution.read(tmp_path / name)


def test_markdown_says_what_yaml_says(tmp_path):
    first, second = of(tmp_path, YAML).principles, of(tmp_path, MARKDOWN, "c.md").principles
    assert first == second and [one.id for one in first] == ["private", "short"]


def test_requests_follow_from_the_principle_unless_they_are_given(tmp_path):
    private, short = of(tmp_path, YAML).principles
    assert private.asks("preference") == "Which answer tells no home?"
    assert short.asks("preference") == "Which answer keeps better to this principle: An answer is short."
    assert all("An answer is short." in short.asks(what) for what in ("critique", "revision"))


def test_principles_are_drawn_by_weight_and_depend_on_the_row_alone(tmp_path):
    rules = of(tmp_path, YAML)
    drawn = Counter(rules.drawn(0, row, "preference").id for row in range(3000))
    assert 0.63 < drawn["private"] / 3000 < 0.70
    assert [rules.drawn(7, row, "x") for row in (5, 3)] == [rules.drawn(7, 5, "x"), rules.drawn(7, 3, "x")]
    assert [rules.drawn(0, row, "revision 0").id for row in range(40)] != [rules.drawn(0, row, "preference").id for row in range(40)]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names no principles"),
        ("principles: []", "names no principles"),
        ("principles: [", "cannot be read"),
        ("principles: [{id: a}]", "principle 1: principle: Field required"),
        ("principles: [{id: a, principle: x, wieght: 2}]", "principle 1: wieght: Extra inputs"),
        ("principles: [{id: a, principle: x, weight: 0}, {id: B c, principle: x}]", r"2 problem\(s\).*weight.*greater than 0.*principle 2: id"),
        ("principles: [{id: a, principle: x}, {id: a, principle: y}]", "the id 'a' stands there 2 times"),
        ("principles: [{id: a, principle: ' '}]", "principle 'a' says nothing"),
    ],
)
def test_a_constitution_that_cannot_judge_is_refused(tmp_path, text, message):
    with pytest.raises(BadInput, match=message):
        of(tmp_path, text)


def test_the_constitution_beside_the_recipes_is_one():
    assert len(constitution.read(ROOT / "recipes/feedback/constitution.yaml").principles) == 3


# ---------------------------------------------------------------- prompts


def test_prompts_are_read_from_pairs_chats_and_questions_each_once(tmp_path):
    turn = {"role": "user", "content": "q"}
    rows = [
        {"prompt": [turn], "chosen": "c", "rejected": "r"},
        {"prompt": "q"},
        {"messages": [turn, {"role": "assistant", "content": "a"}], "kind": "x"},
        {"prompt": "other"},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert prompts.read(tmp_path / "p.jsonl") == [[turn], [{"role": "user", "content": "other"}]]
    assert prompts.read(tmp_path / "p.jsonl", 1) == [[turn]]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "cannot be read"),
        ('{"text": "x"}', "line 2 has no question"),
        ('{"prompt": [{"role": "user"}]}', "line 2 has no question"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "line 2 has no question"),
        ('{"messages": [{"role": "system", "content": "x"}]}', "line 2 does not end with a question"),
        ('{"prompt": " "}', "line 2 does not end with a question"),
        ("3", "line 2 has no question"),
    ],
)
def test_a_line_without_a_question_is_refused_with_its_place(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text('{"prompt": "q"}\n' + line + "\n")
    with pytest.raises(BadInput, match=message):
        prompts.read(tmp_path / "p.jsonl")


# ---------------------------------------------------------------- words


def test_requests_show_the_whole_conversation_and_ask_by_the_principle():
    rule = Principle(id="short", principle="An answer is short.")
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    (critique,), (revision,), (preference,) = (
        wording.critique(asked, "a", rule),
        wording.revision(asked, "a", "c", rule),
        wording.preference(asked, "one", "two", rule),
    )
    assert critique["content"].startswith("System: s\n\nUser: u\n\nAssistant: a\n\n") and critique["content"].endswith(rule.asks("critique"))
    assert "Assistant: a\n\nCritique: c\n\n" in revision["content"]
    assert preference["content"].index("Answer A: one") < preference["content"].index("Answer B: two") and preference["content"].endswith("A or B.")


@pytest.mark.parametrize(
    "reply, label",
    [
        ("A", "A"), (" B.", "B"), ("**A**", "A"), ("(B)", "B"), ("Answer: A", "A"), ("The better answer is B", "B"), ("Option A, because it is short.", "A"),
        ("B\nIt is short.", "B"),
        ("A better one is hard to find", None), ("Both", None), ("", None), ("A or B", None), ("Bread", None), ("I like A.", "A"), ("a", None),
        ("A. B is too long.", "A"), ("I prefer B over A", None),
    ],
)  # fmt: skip
def test_a_label_is_read_where_it_is_clear(reply, label):
    assert wording.label_in(reply) == label
