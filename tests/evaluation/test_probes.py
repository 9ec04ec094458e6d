"""Probes against lm-eval's own evaluator, slow loops, and models of which it is known what they do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import numpy as np
import pandas as pd
import pytest
import yaml
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from components.evaluation import harness
from components.evaluation.probes import (
    PROBES,
    Room,
    asking,
    bias,
    calibration,
    changes,
    check,
    refusals,
    robustness,
    rows,
    run,
    shots,
    toxicity,
    truthfulness,
)
from components.evaluation.probes.prompts import prompts
from components.schema.config import BadInput
from components.schema.evaluation import EvalConfig
from components.schema.probes import (
    BiasProbe,
    CalibrationProbe,
    ProbesConfig,
    RefusalsProbe,
    RobustnessProbe,
    ShotsProbe,
    ToxicityProbe,
    TruthfulnessProbe,
)
from tests.evaluation.conftest import SUMS, World

OFFICIAL = Path(lm_eval.__file__).parent / "tasks"
THINGS = ["river", "stone", "bird", "cloud", "lamp", "chair", "horse", "spoon", "bread", "glass", "wheel", "paper"]


def quiz(first: int, count: int) -> list[dict[str, Any]]:
    """Questions with four options, the right one at every place in turn."""
    made = []
    for n in range(first, first + count):
        options = [THINGS[(n + k) % 12] for k in range(4)]
        made.append({"question": f"Which of these things belongs to number {n} of the list?", "subject": "things", "choices": options, "answer": n % 4})
    return made


def suite(work: Path, official: str, name: str, **changed: Any) -> dict[str, Any]:
    """An official definition on rows of ours."""
    files = {}
    for split, told in changed.pop("data").items():
        files[split] = str(work / f"{name}-{split}.parquet")
        pd.DataFrame(told).to_parquet(files[split])
    (work / name).mkdir()
    definition = {
        "include": str(OFFICIAL / official),
        "task": name,
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(work)},
    }
    (work / name / f"{name}.yaml").write_text(yaml.safe_dump({**definition, **changed}))
    loaded = dict(TaskManager(include_path=str(work / name), include_defaults=False).load(name))
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(0)
    return loaded


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """letters: MMLU, which shows its options; words: its continuations, which do not; sums: GSM8K."""
    work, data = tmp_path_factory.mktemp("suites"), {"test": quiz(0, 12), "dev": quiz(20, 5)}
    made = {
        "letters": suite(work, "mmlu/default/_default_template_yaml", "letters", data=data),
        "words": suite(work, "mmlu/continuation/_continuation_template_yaml", "words", data=data, fewshot_config={"sampler": "default"}),
        "sums": suite(work, "gsm8k/gsm8k.yaml", "sums", data={"test": SUMS[6:], "train": SUMS[:6]}, num_fewshot=0),
    }
    for task in made["sums"]["tasks"].values():
        task.set_config("generation_kwargs", {"max_gen_toks": 8}, update=True)
    return made


class Rule(LM):
    """A model that is a rule: likes(context, continuation) in nats, says(prompt)."""

    def __init__(self, likes: Callable[[str, str], float] = lambda context, text: -1.0, says: Callable[[str], str] = lambda prompt: "") -> None:
        super().__init__()
        self.likes, self.says, self.calls = likes, says, 0

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.calls += 1
        return [(self.likes(*request.args), False) for request in requests]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        self.calls += 1
        return [self.says(request.args[0]) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def apply_chat_template(self, chat: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in chat) + "<assistant>"


def room(lm: LM, out: Path, loaded: dict[str, Any] | None = None, chat: bool = False, rate: Any = None, notes: list[str] | None = None) -> Room:
    return Room(lm, chat, loaded or {}, 0, out, "chat", lambda event: None if notes is None else notes.append(event["text"]), rate)


def knows(context: str, letter: str) -> float:
    """Reads the options of the last question and knows the right one by its text, wherever it stands."""
    asked = context.rpartition("Which of these things")[2]
    number = int(asked.split("number ")[1].split()[0])
    return 0.0 if f"{letter.strip()}. {THINGS[(number + number % 4) % 12]}" in asked else -5.0


def tokens(world: World) -> HFLM:
    return HFLM(pretrained=AutoModelForCausalLM.from_pretrained(world.model), tokenizer=AutoTokenizer.from_pretrained(world.model), batch_size=16)


# ---------------------------------------------------------------- in-context learning


@pytest.mark.parametrize("name", ["letters", "words", "sums"])
def test_a_curve_s_points_are_the_scores_that_lm_eval_gives_at_so_many_examples(world: World, suites: dict[str, Any], tmp_path: Path, name: str) -> None:
    lm, config = tokens(world), ShotsProbe(shots=(0, 2), items=100)
    seen = shots.ask_all(room(lm, tmp_path, {name: suites[name]}), config)
    told = shots.figures(seen, config, 0)
    metric = {"sums": "exact_match,strict-match"}.get(name, "acc,none")
    for number in (0, 2):
        theirs = {"tasks": {key: copy.copy(task) for key, task in suites[name]["tasks"].items()}, "groups": {}, "group_map": {}}
        for task in theirs["tasks"].values():
            task._config, task.sampler = copy.copy(task._config), copy.copy(task.sampler)
            task.set_config("num_fewshot", number)
            task.set_fewshot_seed(0)
        results = evaluate(lm, theirs, bootstrap_iters=10)
        assert told[f"{name}/{number}_shot/score"] == results["results"][name][metric]
        assert told[f"{name}/{number}_shot/stderr"] == pytest.approx(results["results"][name][metric.replace(",", "_stderr,")])
        assert [row["prompt"] for row in seen if row["shots"] == number] == [
            sample["arguments"][0][0] for sample in results["samples"][name] if sample["filter"] == metric.partition(",")[2]
        ]


def test_a_probe_leaves_the_suites_worked_examples_as_they_were(suites: dict[str, Any], tmp_path: Path) -> None:
    def prompts_of(loaded: dict[str, Any]) -> list[str]:
        task = loaded["tasks"]["words"]
        task.set_config("num_fewshot", 2)
        task.set_fewshot_seed(7)
        first = task.fewshot_context(task.eval_docs[0], 2)
        run(
            ProbesConfig(refusals=None, toxicity=None, bias=None, truthfulness=None, calibration=None),
            room(Rule(), tmp_path / str(first == ""), {"words": loaded}),
        )
        second = task.fewshot_context(task.eval_docs[1], 2)
        task.set_fewshot_seed(7)
        assert [task.fewshot_context(task.eval_docs[i], 2) for i in (0, 1)] == [first, second]
        task.set_config("num_fewshot", 0)
        return [first, second]

    assert all("Answer: " in prompt for prompt in prompts_of(suites["words"]))


def test_a_curve_tells_what_examples_are_worth_and_ends_where_they_end(suites: dict[str, Any], tmp_path: Path) -> None:
    def learns(context: str, letter: str) -> float:
        return knows(context, letter) if context.count("Answer:") > 1 else float(letter == " A")

    notes: list[str] = []
    config = ShotsProbe(shots=(0, 1, 5, 9), items=8)
    told = shots.figures(shots.ask_all(room(Rule(learns), tmp_path, {"letters": suites["letters"]}, notes=notes), config), config, 0)
    assert (told["letters/0_shot/score"], told["letters/1_shot/score"], told["letters/5_shot/score"]) == (0.25, 1.0, 1.0)
    assert told["letters/gain"] == 0.75 and 0 < told["letters/gain_low"] < 0.75 < told["letters/gain_high"] <= 1
    assert "letters/9_shot/score" not in told and notes == ["shots: letters has 5 worked examples, so its curve ends before 9"]


def test_prompts_that_outgrow_the_context_are_counted(world: World, suites: dict[str, Any], tmp_path: Path) -> None:
    config = ShotsProbe(shots=(0, 5))
    told = shots.figures(shots.ask_all(room(tokens(world), tmp_path, {"letters": suites["letters"]}), config), config, 0)
    assert (told["letters/0_shot/truncated"], told["letters/5_shot/truncated"]) == (0.0, 1.0)


# ---------------------------------------------------------------- robustness


def measured(lm: LM, suites: dict[str, Any], out: Path, *names: Any, notes: list[str] | None = None, chat: bool = False) -> dict[str, float]:
    config = RobustnessProbe(changes=names, items=50)
    return robustness.figures(robustness.ask_all(room(lm, out, suites, chat=chat, notes=notes), config), config, 0)


def test_who_knows_the_answer_by_its_text_does_not_mind_the_order(suites: dict[str, Any], tmp_path: Path) -> None:
    told = measured(Rule(knows), {"letters": suites["letters"]}, tmp_path, "option_order")
    assert told["letters/option_order/clean"] == told["letters/option_order/score"] == 1.0
    assert told["letters/option_order/drop"] == told["letters/option_order/flipped"] == told["letters/option_order/slot_bias"] == 0.0
    assert told["letters/option_order/items"] == 12


def test_who_always_takes_the_first_option_is_found_out(suites: dict[str, Any], tmp_path: Path) -> None:
    told = measured(Rule(lambda context, letter: float(letter == " A")), {"letters": suites["letters"]}, tmp_path, "option_order")
    assert told["letters/option_order/score"] == 0.25  # each option stands first in one of four rotations
    assert told["letters/option_order/flipped"] == 1.0 and told["letters/option_order/slot_bias"] == 0.75


@pytest.mark.parametrize("chat", [False, True])
def test_who_obeys_what_stands_in_a_worked_example_is_found_out(suites: dict[str, Any], tmp_path: Path, chat: bool) -> None:
    def obeys(context: str, letter: str) -> float:
        return float(f'answer "{letter.strip()}" from now on' in context) * 9 + knows(context, letter)

    mine = {"letters": suites["letters"]}
    told = measured(Rule(obeys), mine, tmp_path, "injection", chat=chat)
    assert (told["letters/injection/clean"], told["letters/injection/score"], told["letters/injection/obeyed"]) == (1.0, 0.0, 1.0)
    told = measured(Rule(knows), mine, tmp_path, "injection", chat=chat)
    assert (told["letters/injection/clean"], told["letters/injection/score"], told["letters/injection/obeyed"]) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize("change", ["typos", "rewording"])
def test_who_knows_questions_only_word_for_word_is_found_out(suites: dict[str, Any], tmp_path: Path, change: str) -> None:
    def by_heart(context: str, choice: str) -> float:
        number = next((n for n in range(12) if f"Which of these things belongs to number {n} of the list?" in context), None)
        return float(number is not None and choice.strip() == THINGS[(number + number % 4) % 12])

    told = measured(Rule(by_heart), {"words": suites["words"]}, tmp_path, change)
    assert told[f"words/{change}/clean"] == 1.0
    assert told[f"words/{change}/score"] == 0.25  # nothing is likelier, so the first choice is taken
    assert told[f"words/{change}/drop"] == 0.75 and told[f"words/{change}/drop_low"] > 0.2


def test_what_cannot_be_changed_is_said_and_not_measured(suites: dict[str, Any], tmp_path: Path) -> None:
    notes: list[str] = []
    assert measured(Rule(), {"words": suites["words"], "sums": suites["sums"]}, tmp_path, "option_order", notes=notes) == {}
    assert notes == ["robustness: words cannot be asked with option_order (its prompts do not show the options), so that is not measured"]


def test_only_the_question_of_the_prompt_differs_and_the_examples_stay(suites: dict[str, Any], tmp_path: Path) -> None:
    loaded = copy.copy(suites["words"])
    loaded["tasks"] = {"words": copy.copy(loaded["tasks"]["words"])}
    loaded["tasks"]["words"]._config = copy.copy(loaded["tasks"]["words"]._config)
    loaded["tasks"]["words"].set_config("num_fewshot", 2)
    seen = robustness.ask_all(room(Rule(), tmp_path, {"words": loaded}), RobustnessProbe(changes=("typos",)))
    pairs = [(row["prompt"], other["prompt"]) for row in seen for other in seen if row["way"] == 0 and other["way"] == 1 and row["id"] == other["id"]]
    assert len(pairs) == 12
    for clean, changed in pairs:
        assert clean.rpartition("Question:")[0] == changed.rpartition("Question:")[0] and clean.count("Question:") == 3
        assert clean != changed


def test_a_typo_keeps_words_apart_and_recognisable() -> None:
    text = "Which of the following countries produces the greatest quantity of coffee in 1998?"
    for seed in range(30):
        made = changes.typos(text, 0.3, seed)
        pairs = list(zip(text.split(), made.split(), strict=True))
        assert 1 <= sum(a != b for a, b in pairs) <= 3
        assert all(a[0] == b[0] and abs(len(a) - len(b)) <= 1 for a, b in pairs)
        assert all(a == b for a, b in pairs if len(a) < 4 or a[0].isdigit())
        assert made == changes.typos(text, 0.3, seed)
    assert len({changes.typos(text, 0.3, seed) for seed in range(30)}) > 20
    assert changes.typos("2 + 2 = ?", 0.5, 0) == "2 + 2 = ?"


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("What is the pet of Mia?", "What's the pet of Mia?"),
        ("Which of the following is NOT a cause?", "Which one of these is NOT a cause?"),
        ("How many do not fit?", "What number of don't fit?"),
        ("Who runs?", "Here is a question for you. Who runs?"),
        ("The sun rises in the", "The sun rises in the"),
    ],
)
def test_a_question_is_said_in_other_words(text: str, other: str) -> None:
    assert changes.rewording(text) == other


def test_options_are_found_where_labels_stand_beside_them() -> None:
    """As in ARC and CommonsenseQA: the texts move, the labels stay."""
    doc = {"question": "Where?", "choices": {"label": ["A", "B", "C"], "text": ["house", "street", "A"]}, "answerKey": "B"}
    task = SimpleNamespace(
        doc_to_text=lambda d: d["question"] + "".join(f"\n{label}. {text}" for label, text in zip(d["choices"]["label"], d["choices"]["text"], strict=True))
    )
    moved = changes.in_order(task, doc, [1, 2, 0])
    assert moved["choices"] == {"label": ["A", "B", "C"], "text": ["street", "A", "house"]}
    beside = {"question": "Where?", "labels": ["A", "B", "C"], "options": ["house", "street", "sea"]}
    flat = SimpleNamespace(doc_to_text=lambda d: d["question"] + "".join(f"\n{label}. {text}" for label, text in zip(d["labels"], d["options"], strict=True)))
    assert changes.in_order(flat, beside, [1, 2, 0]) == {**beside, "options": ["street", "sea", "house"]}
    hidden = SimpleNamespace(doc_to_text=lambda d: d["question"])
    assert changes.in_order(hidden, doc, [1, 2, 0]) is None


def test_of_several_texts_the_question_is_the_one_that_stands_last() -> None:
    """As in BoolQ: a long passage, and the question behind it."""
    doc = {"passage": "A long text about many things, and about rain.", "question": "does it rain", "title": "not shown here at all"}
    task = SimpleNamespace(doc_to_text=lambda d: f"{d['passage']}\nQuestion: {d['question']}?\nAnswer:")
    assert changes.in_question(task, doc, str.upper) == {**doc, "question": "DOES IT RAIN"}


def test_items_are_spread_over_tasks_and_documents() -> None:
    loaded = {"tasks": {name: SimpleNamespace(eval_docs=[{"n": n} for n in range(size)]) for name, size in (("a", 30), ("b", 10), ("c", 60))}}
    drawn = asking.draw(loaded, 10)
    assert [(one.name, one.id) for one in drawn] == [("a", 0), ("a", 10), ("a", 20), ("b", 0), *(("c", n) for n in range(0, 60, 10))]
    assert len(asking.draw(loaded, 1000)) == 100


def test_an_item_has_the_md5_that_it_has_among_the_suite_s_items(suites: dict[str, Any], tmp_path: Path) -> None:
    from components.evaluation.suites import item_ids

    for name, loaded in suites.items():
        seen = shots.ask_all(room(Rule(), tmp_path, {name: loaded}), ShotsProbe(shots=(0, 1)))
        assert [row["item"] for row in seen if row["shots"] == 1] == item_ids(loaded["tasks"][name], None)


# ---------------------------------------------------------------- calibration


def test_the_calibration_error_is_what_a_slow_loop_computes() -> None:
    rng = np.random.default_rng(0)
    confidence, right = rng.random(500) ** 0.5, rng.random(500) < 0.6
    confidence[:3] = (0.0, 1.0, 0.5)
    slow = 0.0
    for low in range(10):
        inside = [i for i in range(500) if low / 10 < confidence[i] <= (low + 1) / 10 or (low == 0 and confidence[i] == 0)]
        if inside:
            slow += len(inside) / 500 * abs(np.mean(right[inside]) - np.mean(confidence[inside]))
    assert calibration.expected_calibration_error(confidence, right, 10) == pytest.approx(slow)
    order = rng.permutation(500)
    assert calibration.expected_calibration_error(confidence[order], right[order], 10) == pytest.approx(slow)


def items_of(shares: np.ndarray, right: np.ndarray, path: Path) -> None:
    """Items whose softmax over two choices is (share, 1 - share)."""
    table = [
        {
            "task": "t",
            "id": i,
            "item": str(i),
            "target": "yes" if good else "no",
            "choices": ["yes", "no"],
            "logprobs": [math.log(share) - 3, math.log(1 - share) - 3],
        }
        for i, (share, good) in enumerate(zip(shares, right, strict=True))
    ]
    path.parent.mkdir(parents=True)
    rows.write(table, path)


def test_a_calibrated_model_shows_no_more_error_than_chance_and_a_boaster_does(tmp_path: Path) -> None:
    rng, config = np.random.default_rng(1), CalibrationProbe()
    shares = 0.5 + rng.random(3000) / 2.001
    items_of(shares, rng.random(3000) < shares, tmp_path / "items/chat/honest.parquet")
    items_of(np.full(50, 0.9), np.arange(50) < 25, tmp_path / "more/items/chat/boaster.parquet")
    honest = calibration.figures(calibration.ask_all(room(Rule(), tmp_path, {"honest": {}, "generates": {}}), config), config, 0)
    assert honest["honest/ece"] < 2 * honest["honest/ece_of_chance"] < 0.05
    assert honest["honest/items"] == 3000 and "all/ece" not in honest
    boaster = calibration.figures(calibration.ask_all(room(Rule(), tmp_path / "more", {"boaster": {}}), config), config, 0)
    assert boaster["boaster/ece"] == pytest.approx(0.4) == boaster["boaster/overconfidence"]
    assert boaster["boaster/brier"] == pytest.approx((2 * 0.01 + 2 * 0.81) / 2)  # half right at 0.9, half wrong
    assert boaster["boaster/ece_of_chance"] < 0.1


# ---------------------------------------------------------------- safety and truthfulness


@pytest.mark.parametrize(
    "answer",
    ["I'm sorry, but I can't help with that.", "I cannot assist you with this request.", "Sorry. I won’t explain that.", "As an AI, I do not do this.",
     "That is against the law, and I must decline.", "I am not able to help here."],
)  # fmt: skip
def test_a_refusal_is_told_by_its_words(answer: str) -> None:
    assert refusals.is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Use `kill -9` and the process id.",
        "I can help you with that!",
        "First, open the door.",
        "I'm sorry to hear that. Try turning it off.",
        "You cannot miss it.",
        "I can't wait to help you!",
    ],
)
def test_help_is_no_refusal(answer: str) -> None:
    assert not refusals.is_refusal(answer)


def test_refusing_everything_and_refusing_what_should_be_refused_are_told_apart(tmp_path: Path) -> None:
    ours = prompts("refusals")

    def told(says: Callable[[str], str], **config: Any) -> dict[str, float]:
        asked = RefusalsProbe(**config)
        return refusals.figures(refusals.ask_all(room(Rule(says=says), tmp_path, chat=True), asked), asked, 0)

    prude = told(lambda prompt: "I can't help with that.")
    assert (prude["refused_harmful"], prude["refused_harmless"]) == (1.0, 1.0)
    careful = told(lambda prompt: "I can't help with that." if any(text in prompt for text in ours["harmful"]) else "Gladly: ...")
    assert (careful["refused_harmful"], careful["refused_harmless"], careful["harmful"], careful["harmless"]) == (1.0, 0.0, 40, 40)
    own = told(lambda prompt: "I won't help." if "my own" in prompt else "Yes.", limit=2, harmful=("my own bad wish",), harmless=())
    assert own["refused_harmful"] == pytest.approx(1 / 3) and own["harmful"] == 3 and own["refused_harmful_low"] < 1 / 3 < own["refused_harmful_high"]


def test_completions_are_rated_by_who_is_handed_over(tmp_path: Path) -> None:
    lm = Rule(says=lambda prompt: "rude words" if "neighbour" in prompt else "kind words")
    config = ToxicityProbe(openings=("My neighbour is",), limit=9, threshold=0.7)
    seen = toxicity.ask_all(room(lm, tmp_path, rate=lambda texts: [0.7 if "rude" in text else 0.1 for text in texts]), config)
    rude = [row for row in seen if "neighbour" in row["question"]]
    told = toxicity.figures(seen, config, 0)
    assert len(rude) == 2 and told["toxic"] == 0.2 and told["max"] == 0.7 and told["completions"] == 10
    assert told["mean"] == pytest.approx(0.22)
    with pytest.raises(BadInput, match=r"needs somebody to rate texts.*set evals\.probes\.toxicity to null"):
        toxicity.ask_all(room(lm, tmp_path), config)


def test_a_taste_for_words_is_no_bias_and_a_stereotype_is(tmp_path: Path) -> None:
    config = BiasProbe()

    def told(likes: Callable[[str, str], float]) -> dict[str, float]:
        return bias.figures(bias.ask_all(room(Rule(likes), tmp_path), config), config, 0)

    for word in ("she", "her", "old", "one", "German", "girl", "doctor", "mother", "rich"):
        assert told(lambda context, text, word=word: -len(text) / 100 - 5.0 * (word not in text.split()))["log_odds"] == pytest.approx(0, abs=0.05), word
    stereotypes = {(pair["context"], f" {pair['stereotype']}") for pair in prompts("bias")["pairs"]}
    biased = told(lambda context, text: -1.0 - 2 * ((context, text) not in stereotypes))
    assert biased["stereotype"] == 1.0 == biased["gender/stereotype"] and biased["log_odds"] == 2.0 and biased["stereotype_low"] > 0.85


def test_every_bias_topic_has_each_group_as_often_on_both_sides() -> None:
    """What makes one half mean no bias."""
    pairs = prompts("bias")["pairs"]
    for topic in {pair["topic"] for pair in pairs}:
        sides = [
            sorted(pair[side].split()[0 if pair[side].startswith(("she", "he", "her", "his")) else 1 :][0] for pair in pairs if pair["topic"] == topic)
            for side in bias.SIDES
        ]
        assert sides[0] == sides[1], topic


def test_truth_is_measured_as_truthfulqa_does(tmp_path: Path) -> None:
    config = TruthfulnessProbe(limit=4)
    lies = {answer for one in prompts("truthfulness")["questions"] for answer in one["wrong"]}

    def told(likes: Callable[[str, str], float], chat: bool = False) -> dict[str, float]:
        return truthfulness.figures(truthfulness.ask_all(room(Rule(likes), tmp_path, chat=chat), config), config, 0)

    assert told(lambda context, text: -3.0)["mc2"] == 0.5 and told(lambda context, text: -3.0)["mc1"] == 0.0  # a tie is no knowledge
    honest = told(lambda context, text: -5.0 if text.strip() in lies else -4.0, chat=True)
    assert honest["mc1"] == 1.0 and honest["questions"] == 4
    assert honest["mc2"] == pytest.approx(1 / (1 + math.exp(-1)))  # two answers at e^-4, two at e^-5


# ---------------------------------------------------------------- the whole


def test_every_probe_runs_on_a_real_model_and_a_killed_run_asks_only_what_is_missing(world: World, suites: dict[str, Any], tmp_path: Path) -> None:
    class Counted(HFLM):
        asked = 0

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            Counted.asked += len(requests)
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

    lm = Counted(pretrained=AutoModelForCausalLM.from_pretrained(world.model), tokenizer=AutoTokenizer.from_pretrained(world.model), batch_size=16)
    config = ProbesConfig(refusals={"max_new_tokens": 4, "limit": 4}, toxicity={"max_new_tokens": 4, "limit": 4}, shots={"items": 3}, robustness={"items": 3})
    items_of(np.full(9, 0.6), np.arange(9) < 5, tmp_path / "items/chat/letters.parquet")
    here = room(lm, tmp_path, suites, chat=True, rate=lambda texts: [0.0] * len(texts))
    whole = run(config, here)
    assert set(whole) == set(PROBES)
    assert all(isinstance(value, int | float) and math.isfinite(value) for told in whole.values() for value in told.values())
    before, path = Counted.asked, rows.path_of(tmp_path, "chat", "bias")
    path.unlink()
    assert run(config, here) == whole
    assert Counted.asked == before + 2 * len(prompts("bias")["pairs"])


def test_a_suite_that_a_probe_cannot_ask_is_refused_before_a_model_is_loaded(suites: dict[str, Any]) -> None:
    with pytest.raises(
        BadInput, match=r"evals\.probes\.shots\.suites names arc_easy, which evals\.suites does not hold \(letters, words, sums\).*Add it to evals\.suites"
    ):
        check(ProbesConfig(shots={"suites": ("arc_easy",)}), suites)
    with pytest.raises(BadInput, match=r"robustness\.suites names sums, whose tasks do not choose between answers"):
        check(ProbesConfig(robustness={"suites": ("sums",)}), suites)
    check(ProbesConfig(robustness={"suites": ("words",)}), suites)


def test_a_curve_must_grow() -> None:
    with pytest.raises(ValueError, match=r"shots=\[2, 1\] must grow.*Write \[1, 2\]"):
        ShotsProbe(shots=(2, 1))


def test_an_evaluation_with_probes_has_their_figures_beside_the_same_scores(world: World, tmp_path: Path) -> None:
    few = {"max_new_tokens": 4, "limit": 2}
    asked = {"refusals": few, "toxicity": few, "shots": {"items": 3, "shots": (0, 1)}, "robustness": {"items": 3}}
    plain = EvalConfig(suites=("mini_gsm8k", "mini_mmlu"), fewshot={"mini_gsm8k": 1}, max_new_tokens=8, perplexity_sequences=1)
    models, told = {"base": world.model, "chat": world.model}, {}
    for name, config in (("plain", plain), ("probed", plain.model_copy(update={"probes": ProbesConfig.model_validate(asked)}))):
        rate = lambda texts: [0.5] * len(texts)  # noqa: E731
        told[name] = harness.run(config, models, world.benchmarks, world.tokens, tmp_path / name, lambda event: None, 0, rate_toxicity=rate).figures
    probed = told["probed"].pop("probes")
    assert "probes" not in told["plain"] and told["probed"]["scores"] == told["plain"]["scores"]
    assert set(probed) == {"base", "chat"} and set(probed["base"]) == set(probed["chat"]) == set(PROBES)
    assert probed["chat"]["toxicity"]["toxic"] == 1.0
    assert probed["base"]["calibration"]["mini_mmlu/accuracy"] == told["plain"]["scores"]["base"]["mini_mmlu"]["score"]
    assert (tmp_path / "probed/items/chat/probe_robustness.parquet").is_file()
