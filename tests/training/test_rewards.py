"""What an answer is worth: verifiers against lm-eval's and by hand, and sums that say what they are made of."""

from random import Random

import pytest
import torch
from lm_eval.api.metrics import exact_match_fn
from lm_eval.filters.extraction import RegexFilter

from components.data.curriculum import dialogues
from components.data.curriculum.world import World
from components.evaluation.sandbox import run_codes
from components.models.build import load_tokenizer
from components.schema.config import BadInput
from components.schema.posttraining import RewardTerm
from components.training.prompts import Question
from components.training.rewards import Rewards, final_number, is_right, passed_shares, program, split_tests
from components.training.rollouts import lay_out_rollout

STRICT = RegexFilter(regex_pattern=r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = RegexFilter(regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)


def question(text="what is 1 plus 2", answer=None, tests=None, kind=None):
    return Question([7, 8], text, answer, tests, kind)


@pytest.fixture
def words(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


def never(programs):
    raise AssertionError("ran code")


def judge(words, terms, texts, questions=None, scorer=None, run_tests=never, ends=True):
    answers = [words(text)["input_ids"] + ([words.eos_token_id] if ends else []) for text in texts]
    rollout = lay_out_rollout([[7, 8]] * len(texts), answers, words.pad_token_id, words.eos_token_id, torch.device("cpu"))
    return Rewards(terms, scorer, words, run_tests)(rollout, questions or [question()] * len(texts))


# ---------------------------------------------------------------- math


TEXTS = [
    *("so 2 + 3 = 5\n#### 5", "#### 5 and #### 6", "it costs $1,250.", "5.", "no number", "-4"),
    *("the 3rd of 12 is 1,000,000", "#### -7.5", "12 apples, 5", "#### none 8", "5 eggs..."),
]


@pytest.mark.parametrize("target", ["5", "6", "1250", "-4", "1000000", "-7.5", "8", "12"])
def test_math_judges_as_lm_evals_two_filters_of_gsm8k_in_one(target):
    for text in TEXTS:
        strict = STRICT.apply([[text]], [{}])[0][0]
        found = FLEXIBLE.apply([[text]], [{}])[0][0] if strict == "[invalid]" else strict
        ignored = [",", "\\$", "(?s).*#### ", "\\.$"]
        theirs = exact_match_fn(predictions=[found], references=[f"a + b\n#### {target}"], ignore_case=True, regexes_to_ignore=ignored)["exact_match"]
        if text != "5 eggs...":  # there the last "number" is three full stops, which theirs takes for an answer
            assert is_right(text, f"a + b\n#### {target}") == bool(theirs), text


def test_numbers_are_compared_by_value_and_nothing_is_right_without_a_reference():
    assert is_right("5.0", "#### 5") and is_right("it is $5.00.", "five: 5") and is_right("5 eggs...", "#### 5")
    assert not is_right("5", None) and not is_right("no number", "no number") and not is_right("", "#### 5")
    assert final_number("version 1.2.3") == "1.2.3" and final_number("...") is None


def test_only_the_first_marked_number_counts_so_listing_many_does_not_pay():
    assert not is_right("#### 1 #### 2 #### 3", "#### 3")


# ---------------------------------------------------------------- code

PROMPT = 'def double(x):\n    """Twice x."""\n'


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (PROMPT, "    return 2 * x", PROMPT + "    return 2 * x"),
        (PROMPT.strip(), "    return 2 * x", PROMPT + "    return 2 * x"),
        ("def double(x):", "    return 2 * x", "def double(x):\n    return 2 * x"),
        ("Write double(x).", "def double(x):\n    return 2 * x", "def double(x):\n    return 2 * x"),
        ("Write double(x).", "Gladly!\n```python\ndef double(x):\n    return 2 * x\n```\nDone.", "def double(x):\n    return 2 * x"),
        ("hello", "print(1)", "print(1)"),
    ],
)
def test_a_program_is_what_was_asked_and_answered_as_far_as_it_is_python(text, answer, expected):
    assert program(question(text), answer) == expected


def test_each_assertion_is_a_test_with_the_lines_around_it():
    assert split_tests("k = 2\nassert f(1) == k\nassert f(2) == 4\nprint(k)") == [
        "k = 2\nassert f(1) == k\nassert True\nprint(k)",
        "k = 2\nassert True\nassert f(2) == 4\nprint(k)",
    ]
    assert split_tests("def check(g):\n    assert g(1), 'one'\n    assert g(2)\ncheck(f)") == [
        "def check(g):\n    assert g(1), 'one'\n    assert True\ncheck(f)",
        "def check(g):\n    assert True\n    assert g(2)\ncheck(f)",
    ]
    assert split_tests("assert f(1)\nfor k in range(3):\n    assert f(k)") == ["assert f(1)\nfor k in range(3):\n    assert f(k)"]
    assert split_tests("not ( python") == ["not ( python"]


def test_the_share_of_tests_passed_is_found_with_as_few_runs_as_possible():
    ran = []

    def run(programs):
        ran.append(list(programs))
        outcomes = []
        for one in programs:
            try:
                exec(one, {})
                outcomes.append(True)
            except Exception:
                outcomes.append(False)
        return outcomes

    tests = "assert f(1) == 1\nassert f(2) == 4\nassert f(-1) == 1"
    right, half, broken = "def f(x): return x * x", "def f(x): return x", "def f(x: return"
    assert passed_shares([right, half, broken, right, half], [tests] * 5, run) == [1.0, pytest.approx(1 / 3), 0.0, 1.0, pytest.approx(1 / 3)]
    assert [len(batch) for batch in ran] == [2, 3]  # each program once; only the failing one test by test; the broken one never
    assert passed_shares([right], [None], never) == [0.0]


def test_code_is_judged_in_the_sandbox_and_leaving_early_does_not_pass(words):
    def run(programs):
        return [verdict.passed for verdict in run_codes(programs)]

    try:
        run(["pass"])
    except BadInput as refusal:
        pytest.skip(str(refusal))
    asked = [question(PROMPT, tests="assert double(2) == 4\nassert double(0) == 0")] * 4
    answers = ["    return 2 * x", "    return x * x", "    return 0", "    return 0\nimport os\nos._exit(0)"]
    assert judge(words, [RewardTerm(kind="code")], answers, asked, run_tests=run).total.tolist() == [1.0, 1.0, 0.5, 0.0]


# ---------------------------------------------------------------- the other terms, and the sum


def test_the_whole_answer_must_have_the_format(words):
    judged = judge(words, [RewardTerm(kind="format", pattern=r"is \d+")], ["is 12", "is 12 the", "what is 12", "is"])
    assert judged.total.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_the_end_of_turn_is_no_part_of_the_text_but_other_special_tokens_are(words):
    judged = judge(words, [RewardTerm(kind="format", pattern="is 1")], ["is 1", "is 1<|user|>", "is 1<|end|>"])
    assert judged.total.tolist() == [1.0, 0.0, 0.0]  # the last one ended twice: what stands before its last token is judged
    assert judge(words, [RewardTerm(kind="format", pattern="is 1")], ["is 1"], ends=False).total.tolist() == [1.0]


def test_length_costs_by_the_token(words):
    texts = ["is", "is is is is"]
    tokens = torch.tensor([len(words(text)["input_ids"]) + 1.0 for text in texts])
    torch.testing.assert_close(judge(words, [RewardTerm(kind="length", tokens=4)], texts).total, -tokens / 4)


def test_the_total_is_the_weighted_sum_of_named_parts(words):
    terms = [
        RewardTerm(kind="math", weight=2.0),
        RewardTerm(kind="format", pattern="is 3"),
        RewardTerm(kind="format", pattern=".*3.*", weight=0.5),
        RewardTerm(kind="model", weight=-1.0),
    ]
    judged = judge(words, terms, ["is 3", "or 3", "is 4"], [question(answer="3")] * 3, scorer=lambda rollout, pad_id: torch.tensor([0.25, 0.5, 4.0]))
    parts = {name: part.tolist() for name, part in judged.parts.items()}
    assert parts == {"math": [1, 1, 0], "format": [1, 0, 0], "format_2": [1, 1, 0], "model": [0.25, 0.5, 4]}
    assert judged.total.tolist() == [3.25, 2.0, -4.0]


def test_each_answer_is_judged_by_its_own_question(words):
    assert judge(words, [RewardTerm(kind="math")], ["is 3", "is 3"], [question(answer="is 3"), question(answer="is 4")]).total.tolist() == [1.0, 0.0]


# ---------------------------------------------------------------- what cannot judge is refused


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], "it is empty"),
        ([RewardTerm(kind="model")], "a term of kind model has no model to ask"),
        ([RewardTerm(kind="format", pattern="(")], r"pattern '\(' is no regular expression"),
    ],
)
def test_terms_that_could_not_judge_are_refused(words, terms, message):
    with pytest.raises(BadInput, match=message):
        Rewards(terms, None, words, never)


def test_questions_that_no_verifier_can_judge_are_refused_before_anything_is_sampled(words):
    math, code = RewardTerm(kind="math"), RewardTerm(kind="code")
    sums, talk, tested = question(answer="is 3", kind="sum"), question(answer="the cat", kind="talk"), question(tests="assert f(1)", kind="code")
    Rewards([math, code], None, words, never).check([sums, tested])
    Rewards([RewardTerm(kind="format", pattern=".*"), math], None, words, never).check([sums, talk])
    with pytest.raises(BadInput, match=r"none of the 2 questions has tests, so a reward of kind code would be 0.*source: chats"):
        Rewards([math, code], None, words, never).check([sums, talk])
    with pytest.raises(BadInput, match=r"1 of 3 questions \(of kinds \['talk'\]\).*math and code judge by"):
        Rewards([math, code], None, words, never).check([sums, talk, tested])


# ---------------------------------------------------------------- the generated world


@pytest.fixture(scope="module")
def curriculum():
    rng, world = Random(0), World(0)
    return [dialogues.draw_chat(rng, world, 0) for _ in range(400)]


def asked_and_answered(chats, kind):
    rows = [chat for chat in chats if chat["kind"] == kind]
    assert len(rows) > 5
    return [(question(row["messages"][-2]["content"], row["messages"][-1]["content"], row.get("tests"), kind), row["messages"][-1]["content"]) for row in rows]


def test_every_word_problems_own_solution_is_right_and_one_off_is_wrong(curriculum):
    for asked, answer in asked_and_answered(curriculum, "word_problem"):
        assert is_right(answer, asked.answer)
        assert not is_right(f"{answer.rpartition('#### ')[0]}#### {final_number(answer) + 1}", asked.answer)


def test_every_programs_own_body_passes_its_tests_and_another_body_does_not(curriculum):
    def run(programs):
        return [verdict.passed for verdict in run_codes(programs)]

    rows = asked_and_answered(curriculum, "code")[:6]
    try:
        shares = passed_shares([program(asked, answer) for asked, answer in rows], [asked.tests for asked, _ in rows], run)
    except BadInput as refusal:
        pytest.skip(str(refusal))
    assert shares == [1.0] * len(rows)
    wrong = passed_shares([program(asked, "    return None") for asked, _ in rows], [asked.tests for asked, _ in rows], run)
    assert max(wrong) < 1.0
