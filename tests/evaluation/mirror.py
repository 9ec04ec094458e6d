"""A mirror of a few official datasets, made up: the columns and layout of the real ones, with a few rows each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

WORDS = ["red", "blue", "green", "seven pens", "a house of stone", "nothing at all", "Ann", "the old man in the garden"]


def sentence(i: int) -> str:
    return " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 2 + i % 4))


def choices(i: int) -> list[str]:
    return [f"{WORDS[(i + k) % len(WORDS)]} {k}" for k in range(4)]


def save(root: Path, id: str, config: str | None, readme: bool = True, **splits: list[dict[str, Any]]) -> None:
    """`readme`: as on the hub; without one, the files' names must do."""
    name = config or "data"
    (root / id / name).mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        pd.DataFrame(rows).to_parquet(root / id / name / f"{split}-00000-of-00001.parquet")
    if readme:
        files = "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in splits)
        (root / id / "README.md").write_text(f"---\nconfigs:\n- config_name: {config or 'default'}\n  data_files:\n{files}---\n")


def arc(i: int) -> dict[str, Any]:
    return {"id": str(i), "question": f"{sentence(i)}?", "choices": {"text": choices(i), "label": list("ABCD")}, "answerKey": "ABCD"[i % 4]}


def hellaswag(i: int) -> dict[str, Any]:
    return {"ind": i, "activity_label": "Walking", "ctx_a": sentence(i), "ctx_b": "he", "ctx": f"{sentence(i)} he", "endings": choices(i), "label": str(i % 4)}


def boolq(i: int) -> dict[str, Any]:
    return {"question": sentence(i), "passage": sentence(i + 1), "idx": i, "label": i % 2}


def truthful(i: int) -> dict[str, Any]:
    return {
        "question": f"{sentence(i)}?",
        "mc1_targets": {"choices": choices(i), "labels": [1, 0, 0, 0]},
        "mc2_targets": {"choices": choices(i), "labels": [1, 1, 0, 0]},
    }


def commonsense(i: int) -> dict[str, Any]:
    return {
        "id": str(i),
        "question": sentence(i),
        "question_concept": "x",
        "choices": {"label": list("ABCDE"), "text": [*choices(i), "none"]},
        "answerKey": "ABCDE"[i % 5],
    }


def winogrande(i: int) -> dict[str, Any]:
    return {"sentence": f"{sentence(i)} _ {sentence(i + 1)}", "option1": "Bob", "option2": "the cat", "answer": str(1 + i % 2)}


def maths(i: int) -> dict[str, Any]:
    return {"problem": f"What is {i} + 1?", "level": "Level 1", "type": "Algebra", "solution": rf"It is \boxed{{{i + 1}}}"}


def make(root: Path) -> Path:
    """The mirror's folder."""
    many, few = range(11), range(5)
    for config in ("ARC-Easy", "ARC-Challenge"):
        save(root, "allenai/ai2_arc", config, readme=False, train=[arc(i) for i in few], validation=[arc(i) for i in few], test=[arc(i) for i in many])
    save(root, "Rowan/hellaswag", None, train=[hellaswag(i) for i in few], validation=[hellaswag(i) for i in many])
    save(root, "aps/super_glue", "boolq", train=[boolq(i) for i in few], validation=[boolq(i) for i in many])
    save(root, "truthfulqa/truthful_qa", "multiple_choice", validation=[truthful(i) for i in many])
    save(root, "tau/commonsense_qa", None, train=[commonsense(i) for i in few], validation=[commonsense(i) for i in many])
    save(root, "allenai/winogrande", "winogrande_xl", train=[winogrande(i) for i in few], validation=[winogrande(i) for i in many])
    save(root, "EleutherAI/hendrycks_math", "algebra", train=[maths(i) for i in few], test=[maths(i) for i in many])
    save(
        root,
        "EleutherAI/wikitext_document_level",
        "wikitext-2-raw-v1",
        train=[{"page": "x"}],
        validation=[{"page": "x"}],
        test=[{"page": sentence(i) * 9} for i in few],
    )
    problems = [{"question": f"Ann has {a} pens and buys {a + 1}. How many?", "answer": f"{a} + {a + 1} = {2 * a + 1}\n#### {2 * a + 1}"} for a in range(12)]
    save(root, "openai/gsm8k", "main", train=problems[:7], test=problems[7:])
    tests = [f"assert f({a}) == {a + 1}" for a in range(3)]
    save(
        root,
        "google-research-datasets/mbpp",
        "full",
        test=[{"task_id": i, "text": f"Add {i}.", "code": f"def f(x):\n    return x + {i}", "test_list": tests} for i in range(3)],
    )
    return root
