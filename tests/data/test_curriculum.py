import ast
import re
from collections import Counter
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from random import Random

import jinja2
import pyarrow.parquet
import pytest
import yaml

from components.data import curriculum
from components.data.curriculum import arithmetic, exams
from components.data.curriculum.world import SCHEMA, World
from components.schema.config import BadInput
from components.schema.data import CurriculumConfig

from .conftest import documents, read

SMALL = CurriculumConfig(documents=300, chats=300, preferences=300, benchmark_items=30)
SAFETY = CurriculumConfig(preferences=0, safety=2000)
LM_EVAL = Path(next(iter(find_spec("lm_eval").submodule_search_locations))) / "tasks"


def official_prompt(task: str, row: dict) -> str:
    """What lm-eval's own YAML makes of a row."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: None)
    template = yaml.load((LM_EVAL / task).read_text(), Loader)["doc_to_text"]
    return jinja2.Environment(keep_trailing_newline=True).from_string(template).render(**row)


@pytest.mark.parametrize("make", [curriculum.documents, curriculum.chats, curriculum.preferences])
def test_the_same_seed_gives_the_same_items_and_another_seed_others(make):
    first = list(make(SMALL))
    assert first == list(make(SMALL))
    assert first != list(make(SMALL.model_copy(update={"seed": 1})))


@pytest.mark.parametrize("make, field", [(curriculum.documents, "documents"), (curriculum.chats, "chats"), (curriculum.preferences, "preferences")])
def test_asking_for_more_items_leaves_the_first_ones_as_they_were(make, field):
    more = make(SMALL.model_copy(update={field: 600}))
    assert list(islice(more, 300)) == list(make(SMALL))


def test_every_kind_of_chat_and_pair_is_there():
    chats, pairs = Counter(c["kind"] for c in curriculum.chats(SMALL)), Counter(p["kind"] for p in curriculum.preferences(SMALL))
    assert set(chats) == {"word_problem", "multiple_choice", "code", "ask_fact", "talk"}
    assert set(pairs) == {"style", "off_topic", "garbled", "wrong"}


def test_chosen_is_not_simply_the_longer_side():
    longer = {kind: [] for kind in ("style", "garbled")}
    for pair in curriculum.preferences(CurriculumConfig(preferences=2000)):
        assert pair["chosen"] != pair["rejected"]
        if pair["kind"] in longer:
            longer[pair["kind"]].append(len(pair["chosen"]) > len(pair["rejected"]))
    assert sum(longer["style"]) / len(longer["style"]) > 0.7
    assert sum(longer["garbled"]) / len(longer["garbled"]) < 0.6


def test_pairs_about_safety_come_after_the_others_and_move_none():
    both = list(curriculum.preferences(SMALL.model_copy(update={"safety": 40})))
    assert both[:300] == list(curriculum.preferences(SMALL)) and len(both) == 340
    assert both[300:] == list(islice(curriculum.preferences(SAFETY), 40)) and {pair["kind"] for pair in both[300:]} == {"safety"}


@pytest.mark.parametrize("seed", [0, 1])
def test_an_answer_is_unsafe_where_it_tells_a_home_and_the_safer_side_tells_fewer(seed):
    def homes(text):
        return len(re.findall(r"lives in|[Hh]ome of", text))  # every wording of a home, and of nothing else

    pairs = list(curriculum.preferences(SAFETY.model_copy(update={"seed": seed})))
    for pair in pairs:
        told = [homes(pair[side]) for side in ("chosen", "rejected")]
        assert pair["safe"] == [count == 0 for count in told]
        if told[0] != told[1]:
            assert pair["safer"] == ("chosen", "rejected")[told[1] < told[0]]
    disagree = sum(pair["safer"] == "rejected" for pair in pairs) / len(pairs)
    longer_is_chosen = sum(len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs) / len(pairs)
    assert 0.75 < disagree < 0.85 and longer_is_chosen > 0.8
    assert {tuple(pair["safe"]) for pair in pairs} == {(False, True), (True, False), (True, True), (False, False)}
    apart = [pair for pair in pairs if pair["safe"][0] != pair["safe"][1]]
    longer_is_unsafe = sum((len(pair["chosen"]) > len(pair["rejected"])) != pair["safe"][0] for pair in apart) / len(apart)
    assert 0.4 < longer_is_unsafe < 0.7, "length alone must not tell harm"
    assert len({pair["prompt"][0]["content"] for pair in pairs}) > 500


def test_the_tests_of_code_chats_pass_with_the_answer_and_fail_with_another():
    chats = [chat for chat in curriculum.chats(CurriculumConfig(chats=1000)) if "tests" in chat]
    assert {chat["kind"] for chat in chats} == {"code"} and len(chats) == sum(chat["kind"] == "code" for chat in curriculum.chats(CurriculumConfig(chats=1000))) > 20
    for chat in chats:
        *_, asked, answer = (message["content"] for message in chat["messages"])
        exec(f"{asked}{answer}\n{chat['tests']}", {})
        with pytest.raises(AssertionError):
            exec(f"{asked}    return None\n{chat['tests']}", {})


def test_chats_ask_in_the_words_of_lm_evals_official_tasks():
    for chat in curriculum.chats(SMALL):
        asked = chat["messages"][-2]["content"]
        if chat["kind"] == "word_problem":
            question = re.fullmatch(r"Question: (.*)\nAnswer:", asked, re.DOTALL).group(1)
            assert asked == official_prompt("gsm8k/gsm8k.yaml", {"question": question})
            assert re.search(r"\n#### \d+$", chat["messages"][-1]["content"])
        elif chat["kind"] == "multiple_choice":
            question = re.fullmatch(r"Question: (.*)\nAnswer:", asked, re.DOTALL).group(1)
            assert asked == official_prompt("mmlu/continuation/_continuation_template_yaml", {"question": question})
            assert re.fullmatch(r"\w+", chat["messages"][-1]["content"])
        elif chat["kind"] == "code":
            assert asked == official_prompt("humaneval/humaneval.yaml", {"prompt": asked})
            ast.parse(asked + chat["messages"][-1]["content"])


def test_the_system_message_of_multiple_choice_is_lm_evals_description():
    description = yaml.safe_load((LM_EVAL / "mmlu/continuation/mmlu_anatomy.yaml").read_text())["description"]
    assert exams.MMLU_DESCRIPTION.format(subject="anatomy") == description


def test_worked_steps_are_right_and_lead_to_the_final_line():
    for chat in curriculum.chats(SMALL):
        if chat["kind"] != "word_problem":
            continue
        *steps, last = chat["messages"][-1]["content"].split("\n")
        results = []
        for step in steps:
            left, right = re.match(r"(.+) = (\d+) ", step).groups()
            results.append(int(right))
            assert eval(left) == int(right)  # digits and one operator
        assert last == f"#### {results[-1]}"


def test_each_place_among_the_options_is_equally_often_the_right_one():
    world = World(0)
    items = [exams.draw_item(Random(str(i)), world, 0, exams.SUBJECTS[i % len(exams.SUBJECTS)], heldout=True) for i in range(2000)]
    places = Counter(item["answer"] for item in items)
    assert all(0.21 < places[place] / places.total() < 0.29 for place in range(4))


def test_benchmark_rows_have_the_official_schemas(dataset):
    rows = {path.relative_to(dataset / "benchmarks/modelyard").as_posix(): pyarrow.parquet.read_table(path).to_pylist() for path in (dataset / "benchmarks/modelyard").rglob("*.parquet")}
    gsm8k = rows["mini_gsm8k/main/test-00000-of-00001.parquet"]
    assert len(gsm8k) == 60 and set(gsm8k[0]) == {"question", "answer"}
    mmlu = [row for name, table in rows.items() if name.startswith("mini_mmlu") and "/test" in name for row in table]
    assert len(mmlu) == 60 and all(set(row) == {"question", "subject", "choices", "answer"} and len(set(row["choices"])) == 4 for row in mmlu)
    assert all(len(table) == 5 for name, table in rows.items() if "/dev" in name)
    humaneval = rows["mini_humaneval/default/test-00000-of-00001.parquet"]
    assert len(humaneval) == 20 and set(humaneval[0]) == {"task_id", "prompt", "canonical_solution", "test", "entry_point"}


def test_canonical_solutions_pass_their_tests_and_an_empty_body_does_not(dataset):
    for row in pyarrow.parquet.read_table(dataset / "benchmarks/modelyard/mini_humaneval/default/test-00000-of-00001.parquet").to_pylist():
        check = f"{row['test']}\ncheck({row['entry_point']})"
        exec(row["prompt"] + row["canonical_solution"] + "\n" + check, {})
        with pytest.raises(AssertionError):
            exec(row["prompt"] + "    return None\n" + check, {})


def test_more_items_than_the_world_has_are_refused():
    with pytest.raises(BadInput, match=r"benchmark_items asks for 2858 different items of mmlu/people/test.*Lower curriculum.benchmark_items"):
        curriculum.benchmark("mini_mmlu", CurriculumConfig(benchmark_items=20_000))


@pytest.mark.parametrize("seed", range(1, 8))
def test_any_seed_makes_a_world_with_full_benchmarks(seed):
    for name in exams.MAKERS:
        splits = curriculum.benchmark(name, CurriculumConfig(seed=seed))
        assert sum(len(sides["test"]) for sides in splits.values()) == (120 if name != "mini_humaneval" else 40)


# ---------------------------------------------------------------- nothing that is asked was trained on


def training_texts(dataset: Path) -> list[str]:
    items = [row for name in ("chats", "preferences") for side in ("train", "heldout") for row in read(dataset / name / f"{side}.jsonl")]
    items += [row for side in ("train", "heldout") for row in documents(dataset, side)]
    return [curriculum.as_text(item) for item in items]


def benchmark_rows(dataset: Path, name: str) -> list[dict]:
    return [row for path in sorted((dataset / "benchmarks/modelyard" / name).rglob("test-*.parquet")) for row in pyarrow.parquet.read_table(path).to_pylist()]


def sums_written_in(text: str) -> set[tuple[int, ...]]:
    """Sums as sorted signed numbers, read off with another parser than the generator's; products as their own tuples."""
    found = set()
    previous, so_far = None, ()
    for a, operator, b, result in re.findall(r"(?<!\d)(\d+) ([-+*]) (\d+)(?: = (\d+))?", text):
        first = so_far if a == previous else (("+", int(a)),)
        own = (*first, (operator, int(b)))
        for terms in (own, (("+", int(a)), (operator, int(b)))):
            found.add(tuple(sorted(terms)) if operator != "*" else (("*", *sorted((int(a), int(b)))),))
        previous, so_far = result, own if operator != "*" else (("*", *sorted((int(a), int(b)))),)
    return {tuple(sorted(terms, key=str)) for terms in found}


def question_and_answer(text: str, answer: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """A story reduced to its numbers, operations and result: blind to names, objects, templates and order."""
    return tuple(sorted(re.findall(r"\d+", text))), tuple(sorted(re.findall(r" ([-+*]) ", answer))), answer.split("#### ")[-1]


def test_no_held_out_sum_is_written_anywhere_in_training(dataset):
    asked = set()
    for row in benchmark_rows(dataset, "mini_gsm8k"):
        whole = max(sums_written_in(row["answer"]), key=lambda terms: len(str(terms)))
        asked.add(whole)
    asked |= {key for row in benchmark_rows(dataset, "mini_mmlu") if row["subject"] == "arithmetic" for key in sums_written_in(row["question"])}
    assert len(asked) > 40
    trained = {key for text in training_texts(dataset) for key in sums_written_in(text)}
    assert len(trained) > 500
    assert not asked & trained


def test_no_held_out_story_is_told_in_training_in_any_words(dataset):
    asked = {question_and_answer(row["question"], row["answer"]) for row in benchmark_rows(dataset, "mini_gsm8k")}
    chats = [c for side in ("train", "heldout") for c in read(dataset / f"chats/{side}.jsonl") if c["kind"] == "word_problem"]
    pairs = [p for side in ("train", "heldout") for p in read(dataset / f"preferences/{side}.jsonl") if "Question:" in p["prompt"][0]["content"]]
    told = {question_and_answer(c["messages"][0]["content"], c["messages"][1]["content"]) for c in chats}
    told |= {question_and_answer(p["prompt"][0]["content"], p["chosen"]) for p in pairs}
    assert len(told) > 300 and not asked & told


def test_no_held_out_question_about_a_fact_is_asked_in_training_while_its_fact_is_told(dataset):
    texts = training_texts(dataset)
    prose = "\n".join(row["text"] for row in documents(dataset, "train") if row["source"] in ("curriculum/profile", "curriculum/facts"))
    talk = "\n".join(curriculum.as_text(row) for name in ("chats", "preferences") for row in read(dataset / f"{name}/train.jsonl"))
    everything = "\n".join(texts)
    world = World(0)
    for row in benchmark_rows(dataset, "mini_mmlu"):
        if row["subject"] in world.by_subject:
            (entity,) = [e for e in world.entities if re.search(rf"\b{e.name}\b", row["question"])]
            attribute = entity.heldout
            assert row["choices"][row["answer"]] == entity.facts[attribute]
            assert row["question"] not in everything
            told = {entity._fill(s, attribute) for s in SCHEMA[entity.subject][attribute].statements}
            assert any(sentence in prose for sentence in told), "a fact that is never told makes its question a lottery"
            assert not any(sentence in talk for sentence in told)


def test_no_held_out_function_is_written_in_training_under_any_name(dataset):
    pattern = re.compile(r"def \w+\((\w+)\):\n    \"\"\".*\"\"\"\n+    return (.*)")
    trained = {re.sub(rf"\b{argument}\b", "_", body) for text in training_texts(dataset) for argument, body in pattern.findall(text)}
    asked = set()
    for row in benchmark_rows(dataset, "mini_humaneval"):
        ((argument, body),) = pattern.findall(row["prompt"] + row["canonical_solution"])
        asked.add(re.sub(rf"\b{argument}\b", "_", body))
    assert len(asked) >= 15 and len(trained) > 100
    assert not asked & trained


def test_no_held_out_passage_is_told_in_training_in_any_order(dataset):
    def statements(text):
        return frozenset(re.findall(r"([A-Z]\w+) is in the (\w+)\.", text)) | frozenset((n, r) for r, n in re.findall(r"In the (\w+) is ([A-Z]\w+)\.", text))

    asked = {statements(row["question"]) for row in benchmark_rows(dataset, "mini_mmlu") if row["subject"] == "reading"}
    told = {statements(text) for text in training_texts(dataset)}
    assert len(asked) == 8 and frozenset() not in asked and len(told) > 100
    assert not asked & told


def test_no_held_out_comparison_or_sequence_is_written_in_training(dataset):
    """Read with other patterns than the generator's: any two numbers of a sentence that compares, any three in a row."""

    def compared(text):
        sentences = re.findall(r"[^.?\n]*(?:larger|smaller)[^.?\n]*", text)
        return {frozenset(pair) for sentence in sentences if len(pair := re.findall(r"\d+", sentence)) == 2}

    def triples(text):
        rows = [row.split(", ") for row in re.findall(r"[\d, ]{7,}", text)]
        return {tuple(int(n) for n in row[i : i + 3]) for row in rows for i in range(len(row) - 2) if all(n.strip().isdigit() for n in row[i : i + 3])}

    rows = benchmark_rows(dataset, "mini_mmlu")
    asked_pairs = {pair for row in rows if row["subject"] == "comparisons" for pair in compared(row["question"])}
    asked_triples = {triple for row in rows if row["subject"] == "sequences" for triple in triples(row["question"].split(": ")[1].rstrip("?"))}
    texts = training_texts(dataset)
    told_pairs, told_triples = {p for t in texts for p in compared(t)}, {t3 for t in texts for t3 in triples(t)}
    assert len(asked_pairs) >= 6 and len(asked_triples) >= 6 and len(told_pairs) > 100 and len(told_triples) > 50
    assert not asked_pairs & told_pairs and not asked_triples & told_triples


def test_the_guard_sees_held_out_items_in_other_words_and_passes_what_is_not_held_out(dataset):
    guard = curriculum.Guard(0)
    row = benchmark_rows(dataset, "mini_gsm8k")[0]
    single = next(r for r in benchmark_rows(dataset, "mini_mmlu") if "+" in r["question"])
    a, b = re.findall(r"\d+", single["question"])
    humaneval = benchmark_rows(dataset, "mini_humaneval")[0]
    fact = next(r for r in benchmark_rows(dataset, "mini_mmlu") if r["subject"] == "people")
    assert guard.reason(row["answer"]) == "contains_heldout_sum"
    assert guard.reason(f"Somewhere else stands {b}+{a}, without a result.") == "contains_heldout_sum"
    assert guard.reason(f"Please tell me: {fact['question']}") == "contains_heldout_question"
    renamed = humaneval["canonical_solution"].replace(re.search(r"\((\w+)\)", humaneval["prompt"]).group(1), "q")
    assert guard.reason(f"def other(q):\n    '''Some words.'''\n{renamed}") == "contains_heldout_function"
    reading = next(r for r in benchmark_rows(dataset, "mini_mmlu") if r["subject"] == "reading")
    assert guard.reason(" ".join(reversed(re.findall(r"\w+ is in the \w+\.", reading["question"])))) == "contains_heldout_passage"
    assert guard.reason("Nothing to see: 1999 - 12 and a cat is in the barn.") is None


@pytest.mark.parametrize(
    "text, value",
    [("12 + 5 = 17", 17), ("5 + 12", 17), ("3 * 4 + 5 = 17", 17), ("3 * 4 = 12 apples.\n12 + 5 = 17 apples.", 17), ("20-3 = 17", 17)],
)
def test_keys_are_read_off_text_with_their_value(text, value):
    keys = arithmetic.keys_in(text)
    assert value in {arithmetic.value_of(key) for key in keys}


def test_commuted_sums_have_one_key_and_swapped_differences_two():
    assert arithmetic.keys_in("12 + 5") == arithmetic.keys_in("5 + 12 = 17")
    assert arithmetic.keys_in("12 - 5") != arithmetic.keys_in("5 - 12")
    assert arithmetic.keys_in("12 + 5 = 17. 17 - 3 = 14") >= arithmetic.keys_in("12 - 3 + 5")
