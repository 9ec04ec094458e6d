"""The harness against lm-eval's own definitions, plain transformers, and models whose answers are known."""

from __future__ import annotations

import json
import math
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import evaluate
import numpy as np
import pytest
import torch
import yaml
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from components.evaluation import harness, items, scores
from components.evaluation.code_eval import SandboxedCodeEval, pass_at, program_of, sandboxed_code_eval
from components.evaluation.harness import measure, offline_and_quiet, run, threads_for
from components.evaluation.local_model import load_model
from components.evaluation.perplexity import heldout_sequences, perplexity
from components.evaluation.suites import OFFICIAL, load_tasks
from components.schema.config import BadInput
from components.schema.evaluation import EvalConfig
from tests.evaluation.conftest import FUNCTIONS, SUMS, World, make_tokenizer, save_model
from tests.evaluation.test_sandbox import needs_namespaces

MINI = ("mini_gsm8k", "mini_mmlu", "mini_humaneval")
HUB = Path(__file__).parents[2].parent / "shared/real/hub"
needs_hub = pytest.mark.skipif(not (HUB / "openai/gsm8k/main").is_dir(), reason="no official benchmarks beside the checkout")


class Oracle(LM):
    """Knows every answer: the target, the right choice, the reference solution."""

    def __init__(self, right: bool = True) -> None:
        super().__init__()
        self.right = right

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [self._answer(r.doc) if self.right else "I do not know" for r in requests]

    @staticmethod
    def _answer(doc: dict) -> str:
        return doc["answer"] if "answer" in doc else doc["canonical_solution"]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(0.0 if (r.idx == r.doc["answer"]) == self.right else -9.0, False) for r in requests]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError


def load(world: World, work: Path, names: tuple[str, ...] = MINI, **config: Any) -> dict[str, dict[str, Any]]:
    return load_tasks(names, world.benchmarks, EvalConfig(suites=names, **config), seed=0, work=work)


def prompts(task: Any) -> list[tuple[Any, ...]]:
    task.build_all_requests(limit=None, rank=0, world_size=1)
    return [instance.args for instance in task.instances]


@pytest.fixture
def quiet() -> Any:
    with offline_and_quiet():
        yield


# ---------------------------------------------------------------- scoring


@needs_namespaces
@pytest.mark.parametrize(("right", "expected"), [(True, 1.0), (False, 0.0)])
def test_an_oracle_scores_one_and_its_opposite_nothing(world: World, tmp_path: Path, quiet: None, right: bool, expected: float) -> None:
    with sandboxed_code_eval() as code_eval:
        for suite, loaded in load(world, tmp_path).items():
            result = measure(Oracle(right), suite, loaded, chat=False, limit=None, code_eval=code_eval)
            assert result["score"]["score"] == expected, suite
            assert [item["score"] for item in result["items"]] == [expected] * result["score"]["items"]
            assert result["score"].get("second", {}).get("score", expected) == expected


@needs_namespaces
@needs_hub
def test_an_oracle_scores_one_on_the_official_suites(tmp_path: Path, quiet: None) -> None:
    names = ("gsm8k", "mmlu_stem", "humaneval")
    with sandboxed_code_eval() as code_eval:
        tasks = load_tasks(names, HUB, EvalConfig(suites=names), seed=0, work=tmp_path)
        assert len(tasks["mmlu_stem"]["tasks"]) == 19
        for suite, items in {"gsm8k": 5, "mmlu_stem": 5 * 19, "humaneval": 5}.items():
            score = measure(Oracle(), suite, tasks[suite], chat=False, limit=5, code_eval=code_eval)["score"]
            assert (score["score"], score["items"]) == (1.0, items), suite


def test_the_standard_error_is_lm_evals_and_binomial_where_it_gives_none(world: World, tmp_path: Path, quiet: None) -> None:
    class HalfRight(Oracle):
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [(0.0 if r.idx == r.doc["answer"] * (r.doc_id % 2) else -9.0, False) for r in requests]

    loaded = load(world, tmp_path, ("mini_mmlu",))["mini_mmlu"]
    score = measure(HalfRight(), "mini_mmlu", loaded, chat=False, limit=2, code_eval=SandboxedCodeEval())["score"]
    assert (score["score"], score["items"]) == (0.5, 4)  # one of two, in each of two subjects
    # By hand, lm-eval's pooled formula: each subject has sample variance 1/2; sqrt((1 * 1/2 + 1 * 1/2) / (4 - 2)) / sqrt(4)
    assert score["stderr"] == pytest.approx(math.sqrt(0.5) / 2)
    assert scores._metric("acc,none", {"acc,none": 0.5, "acc_stderr,none": "N/A"}, 4)["stderr"] == pytest.approx(math.sqrt(0.25 / 4))


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize(("suite", "official"), [("mini_gsm8k", "gsm8k/gsm8k.yaml"), ("mini_humaneval", "humaneval/humaneval.yaml")])
def test_a_mini_suite_asks_exactly_as_the_official_definition_does(world: World, tmp_path: Path, quiet: None, suite: str, official: str) -> None:
    """The official YAML is loaded by lm-eval alone, on the same questions."""
    with sandboxed_code_eval():
        mine = load(world, tmp_path, (suite,))[suite]["tasks"][suite]
        files = {path.name.partition("-")[0]: str(path) for path in (world.benchmarks / "modelyard" / suite).rglob("*.parquet")}
        data = {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs/x.yaml").write_text(json.dumps({"include": str(OFFICIAL / official), **data}))
        (theirs,) = TaskManager(include_path=tmp_path / "theirs", include_defaults=False).load(Path(official).stem)["tasks"].values()
    theirs.set_config("num_fewshot", 0)
    differing = {"max_gen_toks"}
    assert [a[0] for a in prompts(mine)] == [a[0] for a in prompts(theirs)]
    for (_, ours), (_, official_kwargs) in zip(prompts(mine), prompts(theirs), strict=True):
        assert {k: v for k, v in ours.items() if k not in differing} == {k: v for k, v in official_kwargs.items() if k not in differing}
    for key in ("doc_to_text", "doc_to_target", "filter_list", "output_type", "metric_list"):
        assert str(mine.get_config(key)).split(" at 0x")[0] == str(theirs.get_config(key)).split(" at 0x")[0], key


@needs_hub
def test_mini_mmlu_asks_exactly_as_the_official_subject_does(tmp_path: Path, quiet: None) -> None:
    """The official subject's own rows are laid out as a mini subject of the same name."""
    for split in ("test", "dev"):
        target = tmp_path / "b/modelyard/mini_mmlu/high_school_geography" / f"{split}-00000-of-00001.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((HUB / "cais/mmlu/high_school_geography" / target.name).read_bytes())
    mine = load_tasks(("mini_mmlu",), tmp_path / "b", EvalConfig(suites=("mini_mmlu",)), 0, tmp_path / "w1")["mini_mmlu"]["tasks"]["mini_mmlu_high_school_geography"]
    files = {split: str(target.with_name(f"{split}-00000-of-00001.parquet")) for split in ("test", "dev")}
    official = {"include": str(OFFICIAL / "mmlu/continuation/mmlu_high_school_geography.yaml"), "dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    (tmp_path / "official").mkdir()
    (tmp_path / "official/geography.yaml").write_text(yaml.safe_dump(official))
    theirs = TaskManager(include_path=tmp_path / "official", include_defaults=False).load("mmlu_high_school_geography_continuation")["tasks"]["mmlu_high_school_geography_continuation"]
    theirs.set_config("num_fewshot", 0)
    assert prompts(mine) == prompts(theirs) and len(prompts(mine)) > 400
    assert prompts(mine)[0][0].startswith("The following are questions (with answers) about high school geography.\n\nQuestion: ")


def test_chat_models_read_the_template_and_the_base_model_plain_text(world: World, tmp_path: Path) -> None:
    run(EvalConfig(suites=("mini_gsm8k", "mini_mmlu"), max_new_tokens=4, perplexity_sequences=1), {"base": world.model, "chat": world.model}, world.benchmarks, world.tokens, tmp_path, lambda event: None, 0)
    first = {(role, suite): items.read(tmp_path / f"items/{role}/{suite}.parquet")[0] for role in ("base", "chat") for suite in ("mini_gsm8k", "mini_mmlu")}
    question = SUMS[4]["question"]
    assert first["base", "mini_gsm8k"]["prompt"] == f"Question: {question}\nAnswer:"
    assert first["chat", "mini_gsm8k"]["prompt"] == f"<|user|>Question: {question}\nAnswer:<|end|><|assistant|>"
    asked = "Question: What is 2 + 1?\nAnswer:"
    system = "The following are questions (with answers) about elementary sums.\n\n"
    assert first["base", "mini_mmlu"]["prompt"] == system + asked
    assert first["chat", "mini_mmlu"]["prompt"] == f"<|system|>{system}<|end|><|user|>{asked}<|end|><|assistant|>"


def test_worked_examples_come_as_turns_of_their_own(world: World, tmp_path: Path) -> None:
    config = EvalConfig(suites=("mini_gsm8k",), fewshot={"mini_gsm8k": 1}, limit=1, max_new_tokens=4, perplexity_sequences=1)
    run(config, {"chat": world.model}, world.benchmarks, world.tokens, tmp_path, lambda event: None, 0)
    prompt = items.read(tmp_path / "items/chat/mini_gsm8k.parquet")[0]["prompt"]
    example = prompt.split("<|end|><|user|>")[0]
    assert example in [f"<|user|>Question: {s['question']}\nAnswer:<|end|><|assistant|>{s['answer']}" for s in SUMS[:4]]


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("chat", [False, True])
def test_a_choices_loglikelihood_equals_plain_transformers(world: World, tmp_path: Path, quiet: None, chat: bool) -> None:
    loaded = load(world, tmp_path, ("mini_mmlu",))["mini_mmlu"]
    rows = measure(load_model(world.model, batch_size=4), "mini_mmlu", loaded, chat=chat, limit=None, code_eval=SandboxedCodeEval())["items"]
    tokenizer, model = AutoTokenizer.from_pretrained(world.model), AutoModelForCausalLM.from_pretrained(world.model)
    for item in (rows[0], rows[-1]):
        for choice, measured in zip(item["choices"], item["logprobs"], strict=True):
            context = tokenizer(item["prompt"], add_special_tokens=False).input_ids
            answer = tokenizer(choice if chat else " " + choice, add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([context + answer])).logits[0]  # (T, V)
            by_hand = sum(logits[len(context) - 1 + i].log_softmax(-1)[token].item() for i, token in enumerate(answer))
            assert measured == pytest.approx(by_hand, abs=1e-5)


def test_generation_in_a_left_padded_batch_equals_one_prompt_at_a_time_by_plain_transformers(world: World) -> None:
    lm = load_model(world.model, batch_size=8)
    contexts = ["Question: one?", "Question: a much longer one, is it not?\nAnswer:", "x"]
    requests = [SimpleNamespace(args=(c, {"until": ["zzz"], "do_sample": False, "max_gen_toks": 12})) for c in contexts]
    batched = lm.generate_until(requests, disable_tqdm=True)
    for context, text in zip(contexts, batched, strict=True):
        tokens = lm.tokenizer(context, return_tensors="pt").input_ids
        for _ in range(12):  # greedy, by hand
            with torch.no_grad():
                best = lm.model(tokens).logits[0, -1].argmax()
            if best in (lm.tokenizer.eos_token_id, lm.tokenizer.pad_token_id):
                break
            tokens = torch.cat([tokens, best.view(1, 1)], dim=1)
        assert text == lm.tokenizer.decode(tokens[0, len(lm.tokenizer(context).input_ids) :], skip_special_tokens=True)


def test_stopping_row_by_row_gives_the_same_text_as_hflm(world: World) -> None:
    ours = load_model(world.model, batch_size=8)
    model = AutoModelForCausalLM.from_pretrained(world.model)
    model.generation_config.eos_token_id = [ours.tokenizer.eos_token_id, ours.tokenizer.pad_token_id]
    theirs = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(world.model), batch_size=8)
    free = ours.generate_until([SimpleNamespace(args=(s["question"], {"until": [], "max_gen_toks": 30})) for s in SUMS], disable_tqdm=True)
    stops = [text[i : i + 2] for text in free for i in (4, 8, 12) if text[i : i + 2].isascii() and len(text) > i + 2][:3]  # they do occur
    requests = [SimpleNamespace(args=(s["question"], {"until": stops, "do_sample": False, "max_gen_toks": 30})) for s in SUMS]
    assert ours.generate_until(requests, disable_tqdm=True) == theirs.generate_until(requests, disable_tqdm=True)
    assert any(len(a) < len(b) for a, b in zip(ours.generate_until(requests, disable_tqdm=True), free, strict=True))


def test_a_prompt_too_long_for_the_context_is_counted_as_truncated(world: World, tmp_path: Path) -> None:
    small = save_model(tmp_path / "small", make_tokenizer(), seed=3, context=40)
    config = EvalConfig(suites=("mini_gsm8k", "mini_mmlu"), max_new_tokens=8, perplexity_sequences=1)
    outcome = run(config, {"base": small, "policy": world.model}, world.benchmarks, world.tokens, tmp_path / "out", lambda event: None, 0)
    tokenizer = AutoTokenizer.from_pretrained(small)
    lengths = [len(tokenizer(f"Question: {s['question']}\nAnswer:").input_ids) for s in SUMS[4:]]
    assert outcome.figures["scores"]["base"]["mini_gsm8k"]["truncated"] == sum(n > 40 - 8 for n in lengths) > 0
    assert outcome.figures["scores"]["base"]["mini_mmlu"]["truncated"] == 7
    assert outcome.figures["scores"]["policy"]["mini_gsm8k"]["truncated"] == 0


def test_all_held_out_sequences_predict_each_token_once_and_few_are_spread_over_the_file(world: World) -> None:
    stream = np.fromfile(world.tokens / "heldout.bin", dtype=np.uint16)
    rows = (len(stream) - 1) // 32
    inputs, targets = heldout_sequences(world.tokens, 10_000, 32)
    assert (inputs.flatten() == stream[: rows * 32]).all() and (targets.flatten() == stream[1 : rows * 32 + 1]).all()
    inputs, targets = heldout_sequences(world.tokens, 3, 32)
    for row, start in enumerate((0, (rows - 1) // 2 * 32, (rows - 1) * 32)):
        assert (inputs[row] == stream[start : start + 32]).all() and (targets[row] == stream[start + 1 : start + 33]).all()


def test_perplexity_is_what_plain_torch_computes_and_counts_bytes(world: World) -> None:
    lm = load_model(world.model, batch_size=4)
    inputs, targets = heldout_sequences(world.tokens, 3, 32)
    lm._max_length = 32
    measured = perplexity(lm, world.tokens, 3, batch_size=2)
    with torch.no_grad():
        nats = sum(lm.model(torch.tensor(row)[None], labels=None).logits[0].log_softmax(-1)[range(32), want].sum().item() for row, want in zip(inputs, targets, strict=True))
    assert measured["perplexity"] == pytest.approx(math.exp(-nats / 96), rel=1e-4)
    text = "".join(lm.tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in targets)
    assert measured["bits_per_byte"] == pytest.approx(-nats / math.log(2) / len(text.encode()), rel=1e-4)


# ---------------------------------------------------------------- the whole run


@needs_namespaces
def test_a_run_is_complete_deterministic_and_asks_nothing_of_the_network(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"asked the network for {address}")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    events: list[dict] = []
    config = EvalConfig(suites=MINI, max_new_tokens=16, perplexity_sequences=2)
    models = {"base": world.model, "chat": world.other_model, "policy": world.model}
    one = run(config, models, world.benchmarks, world.tokens, tmp_path / "1", events.append, 0)
    two = run(config, models, world.benchmarks, world.tokens, tmp_path / "2", lambda event: None, 0)
    assert one.figures == two.figures and one.samples == two.samples
    files = sorted(p.relative_to(tmp_path / "1") for p in (tmp_path / "1/items").rglob("*.parquet"))
    assert len(files) == 9
    assert all((tmp_path / "1" / f).read_bytes() == (tmp_path / "2" / f).read_bytes() for f in files)
    assert len(one.samples) == 36 and one.samples[12].prompt.startswith("[chat] Question: Ann has")
    assert set(one.execution["seconds"]["policy"]) == {*MINI, "perplexity"}
    assert events[-1] == {"event": "progress", "step": 57, "total": 57, "unit": "items"}  # (8 + 7 + 4) * 3
    assert one.figures["tasks"] == {"mini_gsm8k": "1.0", "mini_mmlu": "1.0", "mini_humaneval": "1.0"}
    json.dumps(one.model_dump(mode="json"), allow_nan=False)


def test_a_small_model_is_measured_with_one_thread_and_the_number_is_given_back(world: World) -> None:
    lm, before = load_model(world.model, batch_size=1, device="cpu"), torch.get_num_threads()
    torch.set_num_threads(2)
    with threads_for(lm):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_a_killed_run_goes_on_at_the_suite_where_it_died(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EvalConfig(suites=("mini_gsm8k", "mini_mmlu"), max_new_tokens=4, perplexity_sequences=1)
    whole = run(config, {"chat": world.model}, world.benchmarks, world.tokens, tmp_path / "whole", lambda event: None, 0)
    official, calls = measure, []

    def dies_at_the_second(lm: Any, suite: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(suite)
        if calls == ["mini_gsm8k", "mini_mmlu"]:
            raise KeyboardInterrupt
        return official(lm, suite, *args, **kwargs)

    monkeypatch.setattr(harness, "measure", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(config, {"chat": world.model}, world.benchmarks, world.tokens, tmp_path / "killed", lambda event: None, 0)
    resumed = run(config, {"chat": world.model}, world.benchmarks, world.tokens, tmp_path / "killed", lambda event: None, 0)
    assert calls == ["mini_gsm8k", "mini_mmlu", "mini_mmlu"]
    assert resumed.figures == whole.figures and resumed.samples == whole.samples


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("gsm8k", "suite gsm8k reads openai/gsm8k, configuration main, .*openai/gsm8k does not exist; MODELYARD_HUB_MIRROR is not set.*Add gsm8k to data.benchmarks"),
        ("mmlu", "suite mmlu reads cais/mmlu, configuration abstract_algebra"),
        ("no_such_task", "no task, group or tag of lm-eval is called no_such_task"),
        ("cruxeval_input", "suite cruxeval_input runs what the model writes by code of its own .* where our sandbox does not reach"),
    ],
)
def test_absent_data_is_said_before_a_model_is_loaded(world: World, tmp_path: Path, suite: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(EvalConfig(suites=("mini_gsm8k", suite)), {"base": Path("/no/such/model")}, world.benchmarks, world.tokens, tmp_path, lambda event: None, 0)


def test_what_cannot_be_measured_is_refused_with_its_reason(world: World, tmp_path: Path) -> None:
    def refusal(model: Path = world.model, tokens: Path = world.tokens, **config: Any) -> str:
        with pytest.raises(BadInput) as caught:
            run(EvalConfig(**{"suites": ("mini_gsm8k",), **config}), {"base": model}, world.benchmarks, tokens, tmp_path, lambda event: None, 0)
        return str(caught.value)

    assert "evals.max_new_tokens=160 leaves no room for a prompt in the 160 tokens" in refusal(max_new_tokens=160)
    assert "fewshot.mini_gsm8k=9 asks for more worked examples than mini_gsm8k has (4)" in refusal(fewshot={"mini_gsm8k": 9})
    assert "is not a causal language model with its tokenizer" in refusal(model=tmp_path)
    assert "holds no readable heldout.bin" in refusal(tokens=tmp_path)


# ---------------------------------------------------------------- code_eval


@needs_namespaces
def test_humaneval_is_scored_by_our_sandbox_and_the_metric_s_name_is_given_back(world: World, tmp_path: Path, quiet: None) -> None:
    official = evaluate.load
    with sandboxed_code_eval() as code_eval:
        loaded = load(world, tmp_path, ("mini_humaneval",))["mini_humaneval"]
        (metric,) = loaded["tasks"]["mini_humaneval"]._metric_fn_list.values()
        assert metric.__self__.__globals__["compute_"] is code_eval  # lm-eval keeps the function's __call__
        measure(Oracle(), "mini_humaneval", loaded, chat=False, limit=None, code_eval=code_eval)
        reference = f"{FUNCTIONS[0]['test']}\ncheck(add_0)"
        assert program_of(FUNCTIONS[0]["prompt"] + FUNCTIONS[0]["canonical_solution"], reference) in code_eval.verdicts
    assert evaluate.load is official


@needs_namespaces
def test_pass_at_k_agrees_with_counting_every_draw() -> None:
    from itertools import combinations

    for passed in range(5):
        draws = list(combinations([True] * passed + [False] * (4 - passed), 2))
        assert pass_at(2, 4, passed) == pytest.approx(sum(map(any, draws)) / len(draws))
    scores, details = SandboxedCodeEval().compute(references=["assert f() == 1"], predictions=[["def f(): return 1", "def f(): return 2"]], k=[1, 2, 5])
    assert scores == {"pass@1": 0.5, "pass@2": 1.0}
    assert details[0][1][1]["result"].startswith("failed: AssertionError")
