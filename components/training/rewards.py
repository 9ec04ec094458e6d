"""What an answer is worth: a weighted sum of what a model, a verifier or a rule says about it.

    rewards = Rewards(config.rewards, scorer, words, given.run_tests)
    rewards.check(questions)                     # before compute is spent: can each of them be judged?
    judged = rewards(rollout, questions)         # questions[b] is what rollout.answers[b] answers

A verifier says 0 where it does not apply (math to a question without a number in its reference, code to one without tests), so
several kinds of questions may be mixed, each judged by its own verifier. An answer is read as a person would see it, without
the token that ends it, but with every other special token: what hides behind one is not overlooked.

math follows lm-eval's gsm8k (Cobbe et al. 2021, arXiv:2110.14168; its two filters in one): the number after the first `####`, or
else the last number. It departs from it in comparing numbers by value, so 5.0 is 5.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from components.schema.config import BadInput
from components.schema.posttraining import RewardTerm
from components.schema.programs import joined
from components.training.prompts import Question
from components.training.rollouts import Rollout

RunTests = Callable[[Sequence[str]], list[bool]]
Score = Callable[[Rollout, int], Tensor]
VERIFIERS = {"math": "a reference answer with a number", "code": "tests"}
STRICT = re.compile(r"#### (-?[0-9.,]+)")
FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Judged:
    """What the answers of a rollout are worth."""

    total: Tensor
    """(B,) the weighted sum."""
    parts: dict[str, Tensor]
    """(B,) each term before its weight, by its kind; a second term of a kind is kind_2."""


class Rewards:
    """The reward of a recipe. `scorer(rollout, pad_id) -> (B,)` is asked by terms of kind model, `run_tests` by those of kind code."""

    def __init__(self, terms: Sequence[RewardTerm], scorer: Score | None, words: PreTrainedTokenizerBase, run_tests: RunTests) -> None:
        """Errors: BadInput for terms that could not judge."""
        if not terms:
            raise BadInput("rewards: it is empty, so all answers would be worth the same: nothing could be learnt. Name a term, such as {kind: math}")
        self.terms, self.scorer, self.words, self.run_tests = tuple(terms), scorer, words, run_tests
        self.patterns = {term.pattern: _compiled(term.pattern) for term in terms if term.pattern is not None}
        if scorer is None and any(term.kind == "model" for term in terms):
            raise BadInput("rewards: a term of kind model has no model to ask. Add the section of the reward model to the recipe, or remove the term")

    @property
    def names(self) -> list[str]:
        """The name of each term in `parts`."""
        kinds = [term.kind for term in self.terms]
        return [kind if (n := kinds[:i].count(kind)) == 0 else f"{kind}_{n + 1}" for i, kind in enumerate(kinds)]

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions that no term can tell right from wrong, and a verifier that would never apply. Errors: BadInput."""
        verifiers = [term.kind for term in self.terms if term.kind in VERIFIERS]
        for kind in dict.fromkeys(verifiers):
            if not any(_applies(kind, question) for question in questions):
                raise BadInput(
                    f"rewards: none of the {len(questions)} questions has {VERIFIERS[kind]}, so a reward of kind {kind} would be 0 for every answer. "
                    "Use prompts: {source: chats, kinds: [...]} with chats that have it, or remove the term"
                )
        if not verifiers or any(term.kind in ("model", "format") for term in self.terms):
            return
        if lost := [question for question in questions if not any(_applies(kind, question) for kind in verifiers)]:
            kinds = sorted({str(question.kind) for question in lost})
            raise BadInput(
                f"rewards: {len(lost)} of {len(questions)} questions (of kinds {kinds}) have none of what {' and '.join(verifiers)} judge by: "
                "no answer to them could be right. Name in prompts.kinds those that have it"
            )

    def __call__(self, rollout: Rollout, questions: Sequence[Question]) -> Judged:
        """Judge the answers of a rollout, answer b as one to questions[b]."""
        texts = self.read(rollout.answers)
        values = [self._value(term, rollout, texts, questions).to(rollout.ids.device, torch.float32) for term in self.terms]
        total = torch.stack([term.weight * value for term, value in zip(self.terms, values, strict=True)]).sum(0)  # (B,)
        return Judged(total, dict(zip(self.names, values, strict=True)))

    def read(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """The answers as text, without the token that ends them."""
        ends = {self.words.eos_token_id, self.words.pad_token_id}
        return self.words.batch_decode([answer[:-1] if answer and answer[-1] in ends else answer for answer in map(list, answers)])

    def _value(self, term: RewardTerm, rollout: Rollout, texts: list[str], questions: Sequence[Question]) -> Tensor:
        if term.kind == "model":
            return self.scorer(rollout, self.words.pad_token_id)
        if term.kind == "math":
            return torch.tensor([float(is_right(text, question.answer)) for text, question in zip(texts, questions, strict=True)])
        if term.kind == "code":
            programs = [program(question, text) for text, question in zip(texts, questions, strict=True)]
            return torch.tensor(passed_shares(programs, [question.tests for question in questions], self.run_tests))
        if term.kind == "format":
            return torch.tensor([float(self.patterns[term.pattern].fullmatch(text) is not None) for text in texts])
        return rollout.counts.sum(1) / -term.tokens


def _applies(kind: str, question: Question) -> bool:
    return bool(question.tests) if kind == "code" else final_number(question.answer or "") is not None


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise BadInput(f"rewards: pattern {pattern!r} is no regular expression ({error}), so no answer could be held against it. Correct it") from None


# ---------------------------------------------------------------- math


def is_right(answer: str, reference: str | None) -> bool:
    """Whether both end in the same number; False where the reference has none."""
    right = final_number(reference or "")
    return right is not None and final_number(answer) == right


def final_number(text: str) -> Decimal | str | None:
    """The number after the first `#### `, else the last number of the text, without commas, dollar signs and a full stop at its end; None where there is none.

    What looks like a number but is none (1.2.3) is given back as it is written.
    """
    strict = STRICT.search(text)
    found = [strict.group(1)] if strict else FLEXIBLE.findall(text)
    for written in reversed(found):
        bare = written.replace(",", "").replace("$", "").removesuffix(".")
        try:
            return Decimal(bare)
        except InvalidOperation:
            if any(character.isdigit() for character in bare):
                return bare
    return None


# ---------------------------------------------------------------- code


def program(question: Question, answer: str) -> str:
    """Prompt and answer as Python. A prompt that is no Python is left out; of an answer with a fenced block, the block is taken."""
    fenced = FENCED.search(answer)
    body = fenced.group(1) if fenced else answer
    return f"{question.text.rstrip()}\n{body}" if _begins_a_program(question.text) else body


def _begins_a_program(text: str) -> bool:
    """Whether text is Python with a definition in it, complete or up to where a body should follow (HumanEval's prompts)."""
    for rest in ("", "\n    pass\n"):
        tree = _parsed(text.rstrip() + rest)
        if tree is not None:
            return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in tree.body)
    return False


def passed_shares(programs: Sequence[str], tests: Sequence[str | None], run_tests: RunTests) -> list[float]:
    """The share of its tests that each program passes (`split_tests`).

    What is no Python is not run, equal programs are run once, and only a program that fails as a whole is run test by test.
    """
    wholes = [joined(code, f"{test}\n") if test and _parsed(code) is not None else None for code, test in zip(programs, tests, strict=True)]
    distinct = list(dict.fromkeys(whole for whole in wholes if whole))
    passed = dict(zip(distinct, run_tests(distinct), strict=True)) if distinct else {}
    shares = {whole: float(ok) for whole, ok in passed.items()}
    single = {
        whole: [joined(code, f"{test}\n") for test in split_tests(given)]
        for whole, code, given in zip(wholes, programs, tests, strict=True)
        if whole and not passed[whole] and len(split_tests(given)) > 1
    }
    each = [one for ones in single.values() for one in ones]
    verdicts = iter(run_tests(each) if each else [])
    for whole, ones in single.items():
        shares[whole] = sum(next(verdicts) for _ in ones) / len(ones)
    return [shares[whole] if whole else 0.0 for whole in wholes]


def split_tests(tests: str) -> list[str]:
    """One test for each assertion at the top level or in a function `check` (HumanEval's shape), with everything else that stands there.

    The tests as they are where they are no such list.
    """
    tree = _parsed(tests)
    count = len(_assertions(tree)) if tree else 0
    return [_only(tests, k) for k in range(count)] if count > 1 else [tests]


def _assertions(tree: ast.Module) -> list[ast.Assert]:
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check")]
    return [node for body in bodies for node in body if isinstance(node, ast.Assert)]


def _only(tests: str, k: int) -> str:
    """The tests with assertion k alone."""
    tree = ast.parse(tests)
    for i, node in enumerate(_assertions(tree)):
        if i != k:
            node.test, node.msg = ast.Constant(True), None
    return ast.unparse(tree)


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
