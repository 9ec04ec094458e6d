"""Any task of lm-eval by its name, on a mirror's data, with the numbers that lm-eval itself gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import pytest
import torch
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from components.evaluation import items
from components.evaluation.code_eval import sandboxed_code_eval
from components.evaluation.harness import offline_and_quiet, run
from components.evaluation.suites import load_tasks
from components.schema import catalogue
from components.schema.config import BadInput
from components.schema.evaluation import EvalConfig
from tests.evaluation import mirror
from tests.evaluation.conftest import World, make_tokenizer, save_model
from tests.evaluation.test_harness import Oracle
from tests.evaluation.test_sandbox import needs_namespaces

NAMED = ("arc_easy", "hellaswag", "boolq", "truthfulqa_mc2", "commonsense_qa", "winogrande", "hendrycks_math_algebra", "gsm8k", "wikitext")
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mirror.make(tmp_path_factory.mktemp("mirror"))


@pytest.fixture
def mirrored(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(hub))
    return hub


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("m"), make_tokenizer(), seed=5, context=256)


def theirs(hub: Path, suites: tuple[str, ...], folder: Path) -> TaskManager:
    """lm-eval's own definitions, in which only the data's place is changed."""
    folder.mkdir()
    paths = {name: path for suite in suites for name, path in catalogue.definitions(suite).items()}
    for leaf in {leaf for suite in suites for leaf in catalogue.leaves(suite)}:
        files = {path.name.partition("-")[0]: str(path) for path in (hub / str(leaf.dataset)).rglob("*.parquet") if leaf.config in (None, path.parent.name)}
        place = {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")}}
        (folder / f"{leaf.task}.yaml").write_text(yaml.safe_dump({"include": str(paths[leaf.task]), **place}))
    return TaskManager(include_path=folder, include_defaults=False)


@pytest.fixture
def quiet() -> Iterator[None]:
    with offline_and_quiet():
        yield


@pytest.mark.parametrize("chat", [False, True])
def test_every_number_is_lm_evals_to_the_last_digit(world: World, mirrored: Path, model: Path, tmp_path: Path, quiet: None, chat: bool) -> None:
    suites = NAMED if not chat else ("arc_easy", "gsm8k", "hendrycks_math_algebra")
    config = EvalConfig(suites=suites, max_new_tokens=NEW_TOKENS, batch_size=4, chat_template=chat, perplexity_sequences=1)
    ours = run(config, {"policy": model}, world.benchmarks, world.tokens, tmp_path / "out", lambda event: None, config.fewshot_seed)
    options: dict[str, Any] = {"gen_kwargs": f"max_gen_toks={NEW_TOKENS}", "apply_chat_template": chat, "fewshot_as_multiturn": chat}
    official = lm_eval.evaluator.simple_evaluate(
        "hf", model_args={"pretrained": str(model), "dtype": "float32"}, tasks=list(suites), device="cpu", batch_size=3,
        task_manager=theirs(mirrored, suites, tmp_path / "theirs"), **options,
    )  # fmt: skip
    for suite in suites:
        score, found = ours.figures["scores"]["policy"][suite], official["results"][suite]
        keys = [key for key in found if "," in key and "_stderr" not in key]
        assert score["score"] == found[keys[0]], suite
        if isinstance(stderr := found[keys[0].replace(",", "_stderr,")], float):
            assert score["stderr"] == stderr, suite
        if len(keys) > 1:
            assert score["second"]["score"] == found[keys[1]], suite
        logged = {sample["doc_id"]: sample for sample in official["samples"][suite]}
        for row in items.read(tmp_path / f"out/items/policy/{suite}.parquet"):
            sample = logged[row["id"]]
            if suite == "wikitext":
                continue
            assert row["prompt"] == sample["arguments"][0][0]
            if row["choices"]:
                assert row["logprobs"] == pytest.approx([response[0][0] for response in sample["resps"]], abs=2e-4)
            else:
                assert row["output"] == sample["resps"][0][0]
    assert {len(items.read(tmp_path / f"out/items/policy/{suite}.parquet")) for suite in suites} <= {11, 5}


@pytest.mark.slow
def test_lm_evals_command_line_gives_the_same_numbers(world: World, mirrored: Path, model: Path, tmp_path: Path) -> None:
    suites = ("arc_easy", "gsm8k")
    theirs(mirrored, suites, tmp_path / "definitions")
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--tasks", ",".join(suites), "--device", "cpu",
        "--batch_size", "2", "--include_path", str(tmp_path / "definitions"), "--gen_kwargs", f"max_gen_toks={NEW_TOKENS}", "--output_path", str(tmp_path / "theirs"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    found = json.loads(next((tmp_path / "theirs").rglob("results_*.json")).read_text())["results"]
    config = EvalConfig(suites=suites, max_new_tokens=NEW_TOKENS, perplexity_sequences=1)
    ours = run(config, {"base": model}, world.benchmarks, world.tokens, tmp_path / "out", lambda event: None, config.fewshot_seed).figures["scores"]["base"]
    assert ours["arc_easy"]["score"] == found["arc_easy"]["acc,none"] and ours["arc_easy"]["stderr"] == found["arc_easy"]["acc_stderr,none"]
    assert ours["arc_easy"]["second"]["score"] == found["arc_easy"]["acc_norm,none"]
    assert (
        ours["gsm8k"]["score"] == found["gsm8k"]["exact_match,strict-match"]
        and ours["gsm8k"]["second"]["score"] == found["gsm8k"]["exact_match,flexible-extract"]
    )


def test_every_model_is_asked_with_the_same_worked_examples(world: World, mirrored: Path, model: Path, tmp_path: Path) -> None:
    config = EvalConfig(suites=("gsm8k",), max_new_tokens=2, perplexity_sequences=1, chat_template=False)
    run(config, {"base": model, "chat": model}, world.benchmarks, world.tokens, tmp_path, lambda event: None, 7)
    base, chat = ([row["prompt"] for row in items.read(tmp_path / f"items/{role}/gsm8k.parquet")] for role in ("base", "chat"))
    assert base == chat and len({prompt.split("\n\n")[0] for prompt in base}) > 1  # drawn, not the first ones


def test_a_tag_is_averaged_over_the_items_of_its_tasks(world: World, mirrored: Path, model: Path, tmp_path: Path) -> None:
    config = EvalConfig(suites=("ai2_arc",), perplexity_sequences=1)
    score = run(config, {"base": model}, world.benchmarks, world.tokens, tmp_path, lambda event: None, 0).figures["scores"]["base"]["ai2_arc"]
    rows = items.read(tmp_path / "items/base/ai2_arc.parquet")
    assert score["items"] == 22 and set(score["subjects"]) == {"arc_easy", "arc_challenge"} == {row["task"] for row in rows}
    assert score["score"] == pytest.approx(sum(row["score"] for row in rows) / 22)


@needs_namespaces
def test_mbpp_runs_its_programs_in_the_sandbox(mirrored: Path, tmp_path: Path, quiet: None) -> None:
    from components.evaluation.harness import measure

    class Solver(Oracle):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [request.doc["code"] for request in requests]

    with sandboxed_code_eval() as code_eval:
        loaded = load_tasks(("mbpp",), tmp_path, EvalConfig(suites=("mbpp",)), 0, tmp_path)["mbpp"]
        result = measure(Solver(), "mbpp", loaded, chat=False, limit=None, code_eval=code_eval)
    assert [row["score"] for row in result["items"]] == [0.0, 1.0, 0.0]  # the tests want x + 1
    assert result["score"]["score"] == pytest.approx(1 / 3) and len(code_eval.verdicts) >= 3


def test_a_definition_of_ones_own_is_measured_by_its_name(world: World, model: Path, tmp_path: Path) -> None:
    own = tmp_path / "tasks"
    own.mkdir()
    (own / "rows.jsonl").write_text("".join(json.dumps({"q": f"Is {i} even?", "a": i % 2}) + "\n" for i in range(6)))
    definition = {
        "task": "parity", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(own / "rows.jsonl")}}, "output_type": "multiple_choice", "test_split": "test",
        "doc_to_text": "{{q}}", "doc_to_target": "a", "doc_to_choice": ["yes", "no"], "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 2.0},
    }  # fmt: skip
    (own / "parity.yaml").write_text(yaml.safe_dump(definition))
    config = EvalConfig(suites=("parity",), definitions=str(own), perplexity_sequences=1)
    outcome = run(config, {"base": model}, world.benchmarks, world.tokens, tmp_path / "out", lambda event: None, 0)
    assert outcome.figures["scores"]["base"]["parity"]["items"] == 6 and outcome.figures["tasks"] == {"parity": "2.0"}
    with pytest.raises(BadInput, match=r"evals\.definitions=/no/folder is not a folder"):
        run(config.model_copy(update={"definitions": "/no/folder"}), {"base": model}, world.benchmarks, world.tokens, tmp_path / "o", lambda event: None, 0)


def test_the_snapshot_is_read_before_the_mirror(world: World, mirrored: Path, model: Path, tmp_path: Path) -> None:
    mirror.save(tmp_path / "benchmarks", "Rowan/hellaswag", None, train=[mirror.hellaswag(0)], validation=[mirror.hellaswag(i) for i in range(3)])
    loaded = load_tasks(("hellaswag",), tmp_path / "benchmarks", EvalConfig(suites=("hellaswag",)), 0, tmp_path)["hellaswag"]
    assert len(loaded["tasks"]["hellaswag"].eval_docs) == 3


@pytest.mark.parametrize(("suite", "words"), [("helaswag", "Did you mean hellaswag"), ("mini_gsm9k", "mini_gsm8k")])
def test_a_name_that_nothing_has_is_told_what_it_may_have_been(suite: str, words: str) -> None:
    with pytest.raises(BadInput, match=rf"is called {suite}, so it cannot be measured.*{words}"):
        catalogue.leaves(suite)


def test_a_dataset_that_is_a_script_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(tmp_path))
    (tmp_path / "Rowan/hellaswag").mkdir(parents=True)
    (tmp_path / "Rowan/hellaswag/hellaswag.py").write_text("raise SystemExit('a loading script ran')")
    with offline_and_quiet(), pytest.raises(BadInput, match=r"suite hellaswag reads Rowan/hellaswag and that cannot be read here .*script"):
        load_tasks(("hellaswag",), tmp_path / "none", EvalConfig(suites=("hellaswag",)), 0, tmp_path / "w")


def test_a_split_that_is_not_there_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(tmp_path))
    mirror.save(tmp_path, "Rowan/hellaswag", None, train=[mirror.hellaswag(0)])
    with offline_and_quiet(), pytest.raises(BadInput, match=r"suite hellaswag cannot be loaded .*validation.*may lack a split"):
        load_tasks(("hellaswag",), tmp_path / "none", EvalConfig(suites=("hellaswag",)), 0, tmp_path / "w")


# ---------------------------------------------------------------- the catalogue, against lm-eval's index


@pytest.mark.parametrize("folder", ["mmlu/default", "arc", "hendrycks_math", "truthfulqa", "glue"])
def test_names_and_tags_are_those_of_lm_evals_index(folder: str) -> None:
    root = catalogue.official() / folder
    index = TaskIndex.build([root])
    assert {name: entry.yaml_path for name, entry in index.items() if entry.yaml_path} == catalogue.files(root)
    for name, entry in index.items():
        if entry.kind.name == "TAG":
            assert set(catalogue.tagged(name, root)) == entry.tags
        elif entry.kind.name == "TASK":
            (leaf,) = catalogue.leaves(name)
            assert (leaf.dataset, leaf.config) == (entry.cfg["dataset_path"], entry.cfg.get("dataset_name"))


def test_a_group_hands_its_settings_to_its_tasks() -> None:
    assert len(catalogue.leaves("mmlu")) == 57 == len({leaf.config for leaf in catalogue.leaves("mmlu")})
    assert {leaf.dataset for leaf in catalogue.leaves("mmlu_pro")} == {"TIGER-Lab/MMLU-Pro"} and len(catalogue.leaves("mmlu_pro")) == 14


def test_one_thread_or_two_give_the_same_items(world: World, mirrored: Path, model: Path, tmp_path: Path) -> None:
    config = EvalConfig(suites=("arc_easy", "gsm8k"), max_new_tokens=8, batch_size=2, perplexity_sequences=1)
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        run(config, {"base": model}, world.benchmarks, world.tokens, tmp_path / str(threads), lambda event: None, 0)
    torch.set_num_threads(before)
    one, three = (
        items.read(tmp_path / f"{threads}/items/base/arc_easy.parquet") + items.read(tmp_path / f"{threads}/items/base/gsm8k.parquet") for threads in (1, 3)
    )
    assert one == three
