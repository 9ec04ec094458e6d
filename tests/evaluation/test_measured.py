"""How measuring is laid out: shared prompts, stop strings, batches, what is kept and taken up again, and what stood in the training text."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from components.evaluation import harness, items
from components.evaluation.batches import Journal, in_turn, side_by_side
from components.evaluation.harness import model_md5, run
from components.evaluation.likelihood import Scored, can_share, score
from components.evaluation.local_model import Ends, load_model
from components.evaluation.perplexity import domains, perplexity
from components.evaluation.scores import with_overlap
from components.schema.evaluation import EvalConfig
from tests.evaluation.conftest import SUMS, World, make_tokenizer, save_model

SHAPE = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 40}
REQUESTS = [
    ([1, 2, 3, 4], [5, 6, 7]),
    ([1, 2, 3, 4], [5, 6, 8]),
    ([1, 2, 3, 4], [9]),
    ([1, 2, 3, 4], [10]),
    ([7] * 60, [3, 4]),
    ([7] * 60, [3, 5, 6]),
    ([2], [3]),
]


def by_hand(model: Any, prompt: list[int], answer: list[int], longest: int) -> tuple[float, bool]:
    """One answer, alone, by the plain forward over all its tokens."""
    ids = (prompt + answer)[-(longest + 1) :]
    with torch.no_grad():
        logp = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)[-len(answer) :]  # (n, V)
    return sum(logp[i, token].item() for i, token in enumerate(answer)), logp.argmax(-1).tolist() == answer


def models() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "llama": LlamaForCausalLM(LlamaConfig(**SHAPE, initializer_range=0.4)),
        "neox": GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, initializer_range=0.4)),
        "window": MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=3, initializer_range=0.4)),
    }


@pytest.mark.parametrize(("name", "shares"), [("llama", True), ("neox", True), ("window", False)])
def test_likelihoods_are_those_of_each_answer_alone(name: str, shares: bool) -> None:
    model = models()[name].eval()
    assert can_share(model) is shares
    rows = Scored.plan(REQUESTS, model, longest=40)
    found: dict[int, tuple[float, bool]] = {}
    for row, scored in zip(rows, score(model, rows), strict=True):
        found.update(zip(row.requests, scored, strict=True))
    for number, (prompt, answer) in enumerate(REQUESTS):
        logprob, greedy = by_hand(model, prompt, answer, 40)
        assert found[number][0] == pytest.approx(logprob, abs=1e-4) and found[number][1] is greedy


def test_choices_to_one_prompt_are_read_in_one_row() -> None:
    model = models()["llama"].eval()
    rows = Scored.plan(REQUESTS[:4], model, longest=40)
    assert [row.tokens for row in rows] == [4 + 2]  # the prompt, and 5 6 once: 7, 8, 9 and 10 need nothing more
    apart = Scored.plan([([1] * 30, [2] * 8), ([1] * 30, [3] * 8)], model, longest=40)
    assert [row.tokens for row in apart] == [37, 37]  # together they would be longer than what the model reads


def test_half_precision_reads_each_answer_by_itself() -> None:
    assert not can_share(models()["llama"].to(torch.bfloat16))


def test_an_answer_that_greedy_decoding_gives_is_told_so() -> None:
    model = models()["llama"].eval()
    with torch.no_grad():
        best = int(model(torch.tensor([[1, 2, 3]])).logits[0, -1].argmax())
    ((likely, unlikely),) = score(model, Scored.plan([([1, 2, 3], [best]), ([1, 2, 3], [(best + 1) % 50])], model, 40))
    assert likely[1] and not unlikely[1] and likely[0] > unlikely[0]


# ---------------------------------------------------------------- stop strings


@pytest.mark.parametrize("strings", [["\n\n"], ["Question:", "</s>"], ["é"], [" "], []])
def test_an_answer_ends_with_the_token_that_completes_a_stop_string(strings: list[str]) -> None:
    tokenizer = make_tokenizer()
    text = "a b\n\nc\nQuestion: dé</s>\n\n"
    ids = tokenizer.encode(text)
    ends = Ends(strings, tokenizer)
    told = [bool(ends(torch.tensor([ids[: n + 1]]))[0]) for n in range(len(ids))]
    whole = [any(s in tokenizer.decode(ids[: n + 1]) for s in strings) for n in range(len(ids))]
    first = whole.index(True) if any(whole) else None
    assert (told.index(True) if any(told) else None) == first


def test_a_row_that_has_ended_leaves_the_others_as_they_are(world: World) -> None:
    lm = load_model(world.model, batch_size=8)
    free = lm.generate_until([SimpleNamespace(args=(s["question"], {"until": [], "max_gen_toks": 20}), task_name="t") for s in SUMS])
    stop = free[0][3:5]
    stopped = lm.generate_until([SimpleNamespace(args=(s["question"], {"until": [stop], "max_gen_toks": 20}), task_name="t") for s in SUMS])
    assert stopped == [text.split(stop)[0] for text in free] != free


# ---------------------------------------------------------------- batches


def test_batches_hold_like_lengths_and_no_more_than_fit() -> None:
    batches = in_turn([3, 9, 4, 9, 1], most=3, rows=lambda length: 18 // length)
    assert batches == [[1, 3], [2, 0, 4]]
    assert in_turn([5], most=8, rows=lambda length: 1) == [[0]] and in_turn([], 4, lambda length: 1) == []


@pytest.mark.parametrize("at_once", [1, 3])
def test_batches_side_by_side_come_in_order_and_give_the_threads_back(at_once: int) -> None:
    before = torch.get_num_threads()
    assert list(side_by_side([[0, 1], [2], [3]], lambda batch: [10 * i for i in batch], at_once, Journal(None))) == [[0, 10], [20], [30]]
    assert torch.get_num_threads() == before


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    tried: list[list[int]] = []

    def run(batch: list[int]) -> list[int]:
        tried.append(batch)
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return [-i for i in batch]

    assert list(side_by_side([[0, 1, 2, 3, 4]], run, 1, Journal(None))) == [[0, -1, -2, -3, -4]]
    assert tried == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4], [2], [3, 4]]


def test_a_journal_gives_back_what_was_answered_and_forgets_what_is_about_other_batches(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def answer(batch: list[int]) -> list[Any]:
        asked.append(batch)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [[0.1 + i, "é\n\u2028"] for i in batch]

    batches = [[0], [1, 2], [3]]
    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(batches, answer, 1, Journal(tmp_path)))
    with (tmp_path / "1.jsonl").open("a") as file:
        file.write("[2, [[")  # a line that the kill cut
    found = list(side_by_side(batches, answer, 1, Journal(tmp_path)))
    assert asked == [[0], [1, 2], [1, 2], [3]] and found == [[[0.1 + i, "é\n\u2028"] for i in batch] for batch in batches]
    assert list(side_by_side(batches, lambda batch: [None], 1, Journal(tmp_path))) == found
    assert list(side_by_side([[3], [0]], lambda batch: ["new"], 1, Journal(tmp_path))) == [["new"], ["new"]]


# ---------------------------------------------------------------- kept for other runs


CONFIG = EvalConfig(suites=("mini_gsm8k", "mini_mmlu"), max_new_tokens=6, perplexity_sequences=1, batch_size=2)


def measured(world: World, folder: Path, model: Path, config: EvalConfig = CONFIG, seed: int = 0, **more: Any) -> Any:
    return run(config, {"base": model}, world.benchmarks, world.tokens, folder, lambda event: None, seed, **more)


def test_a_run_that_was_killed_goes_on_at_the_batch_where_it_died(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured(world, tmp_path / "whole", world.model)
    calls, official = [], harness.load_model

    def dies_at(batch: int) -> Any:
        def load(*args: Any, **kwargs: Any) -> Any:
            lm = official(*args, **kwargs)
            lm.at_once, forward = 1, lm.model.forward

            @functools.wraps(forward)  # its signature is asked for
            def counted(*inputs: Any, **given: Any) -> Any:
                calls.append(1)
                if len(calls) == batch:
                    raise KeyboardInterrupt
                return forward(*inputs, **given)

            monkeypatch.setattr(lm.model, "forward", counted)
            return lm

        return load

    monkeypatch.setattr(harness, "load_model", dies_at(-1))
    measured(world, tmp_path / "counted", world.model)
    needed = len(calls)
    calls.clear()
    monkeypatch.setattr(harness, "load_model", dies_at(needed - 3))
    with pytest.raises(KeyboardInterrupt):
        measured(world, tmp_path / "killed", world.model)
    calls.clear()
    monkeypatch.setattr(harness, "load_model", dies_at(-1))
    resumed = measured(world, tmp_path / "killed", world.model)
    assert resumed.figures == whole.figures and len(calls) < needed
    for suite in CONFIG.suites:
        assert (tmp_path / f"killed/items/base/{suite}.parquet").read_bytes() == (tmp_path / f"whole/items/base/{suite}.parquet").read_bytes()


def test_another_run_takes_what_was_measured_and_only_that(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_suites: list[str] = []
    official = harness.measure
    monkeypatch.setattr(harness, "measure", lambda lm, suite, *args: measured_suites.append(suite) or official(lm, suite, *args))
    first = measured(world, tmp_path / "1", world.model, cache=tmp_path / "cache")
    again = measured(world, tmp_path / "2", world.model, cache=tmp_path / "cache")
    assert measured_suites == list(CONFIG.suites) and again.figures == first.figures
    assert (tmp_path / "1/items/base/mini_mmlu.parquet").read_bytes() == (tmp_path / "2/items/base/mini_mmlu.parquet").read_bytes()
    for number, change in enumerate(
        (
            {"model": world.other_model},
            {"config": CONFIG.model_copy(update={"limit": 2})},
            {"seed": 1},
            {"config": CONFIG.model_copy(update={"chat_template": True})},
        )
    ):
        measured_suites.clear()
        measured(world, tmp_path / f"c{number}", **{"model": world.model, **change}, cache=tmp_path / "cache")
        assert measured_suites == list(CONFIG.suites), change


def test_a_changed_item_is_measured_anew(world: World, tmp_path: Path) -> None:
    from tests.evaluation.conftest import QUIZ, save_benchmark

    benchmarks = tmp_path / "b"
    config = EvalConfig(suites=("mini_mmlu",), perplexity_sequences=1)
    for round_, questions in enumerate((QUIZ, [{**q, "question": q["question"] + "?"} for q in QUIZ])):
        save_benchmark(benchmarks, "modelyard/mini_mmlu", "sums", dev=QUIZ[:2], test=questions[2:])
        run(config, {"base": world.model}, benchmarks, world.tokens, tmp_path / str(round_), lambda event: None, 0, cache=tmp_path / "cache")
    old, new = (items.read(tmp_path / f"{round_}/items/base/mini_mmlu.parquet") for round_ in (0, 1))
    assert not {row["item"] for row in old} & {row["item"] for row in new} and all("??" in row["prompt"] for row in new)


def test_what_a_model_is_follows_its_files(world: World, tmp_path: Path) -> None:
    one = save_model(tmp_path / "one", make_tokenizer(), seed=1)
    assert model_md5(one) == model_md5(world.model) != model_md5(world.other_model)
    (one / "curve.jsonl").write_text("a log")
    assert model_md5(one) == model_md5(world.model)
    config = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert model_md5(one) != model_md5(world.model)


# ---------------------------------------------------------------- what stood in the training text


def test_scores_stand_beside_those_of_clean_and_contaminated_items(world: World, tmp_path: Path) -> None:
    rows = [("mini_mmlu_elementary_sums", i, i / 4, i / 4 >= 0.5) for i in range(4)] + [("mini_mmlu_more_sums", 0, None, None)]
    table = pa.table({name: [row[k] for row in rows] for k, name in enumerate(("task", "doc_id", "overlap", "contaminated"))})
    pq.write_table(table, tmp_path / "overlap.parquet")
    outcome = measured(world, tmp_path / "out", world.model, overlap=tmp_path)
    found = items.read(tmp_path / "out/items/base/mini_mmlu.parquet")
    assert [row["overlap"] for row in found] == [0.0, 0.25, 0.5, 0.75, None, None, None]
    score = outcome.figures["scores"]["base"]["mini_mmlu"]
    assert score["clean"]["items"] == 2 == score["contaminated"]["items"]
    assert score["clean"]["score"] == pytest.approx(sum(row["score"] for row in found[:2]) / 2)
    assert "clean" not in outcome.figures["scores"]["base"]["mini_gsm8k"]  # nobody looked


def test_a_task_that_leaves_rows_out_is_not_joined_by_number() -> None:
    found = items.Overlap({("t", 0): (0.9, True)}, {"t": 5})
    rows = [{"task": "t", "id": i} for i in range(3)]
    assert [row["overlap"] for row in found.joined(rows, {"t": True})] == [None] * 3
    assert [row["overlap"] for row in found.joined(rows, {"t": False})] == [0.9, None, None]


def test_a_metric_that_is_no_mean_over_items_has_no_clean_part() -> None:
    rows = [{"score": -3.0, "contaminated": False}, {"score": -2.0, "contaminated": True}]
    assert with_overlap({"score": 120.5}, rows) == {"score": 120.5}
    assert with_overlap({"score": 0.5}, [{"score": 1.0, "contaminated": False}, {"score": 0.0, "contaminated": False}])["contaminated"] == {
        "score": None,
        "stderr": None,
        "items": 0,
    }


@pytest.mark.parametrize(
    ("measured_value", "metric", "expected"),
    [
        (1, "acc", 1.0),
        ((-12.0, 4), "word_perplexity", -3.0),
        ((2, 2), "f1", 1.0),
        ((0, 2), "mcc", 0.0),
        ((1, [0.1, 0.9]), "brier_score", None),
        (None, "acc", None),
    ],
)
def test_any_metric_on_one_item_is_a_number_or_nothing(measured_value: Any, metric: str, expected: float | None) -> None:
    assert items.value(measured_value, metric) == expected


# ---------------------------------------------------------------- held-out text by domain


def test_each_domain_is_measured_on_its_own_tokens(world: World, tmp_path: Path) -> None:
    stream = torch.frombuffer(bytearray((world.tokens / "heldout.bin").read_bytes()), dtype=torch.uint16).numpy()
    (tmp_path / "heldout").mkdir()
    (tmp_path / "tokens.json").write_text((world.tokens / "tokens.json").read_text())
    parts = {"books-00000": stream[:100], "books-00001": stream[100:200], "web-00000": stream[200:]}
    for name, part in parts.items():
        part.tofile(tmp_path / f"heldout/{name}.bin")
    stream.tofile(tmp_path / "heldout.bin")
    assert {name: len(part) for name, part in domains(tmp_path).items()} == {"books": 200, "web": len(stream) - 200}
    lm = load_model(world.model, batch_size=4)
    lm._max_length = 32
    found = perplexity(lm, tmp_path, 10_000, batch_size=4)["domains"]
    model = AutoModelForCausalLM.from_pretrained(world.model)
    ids = torch.tensor(stream[:193].astype("int64"))  # six sequences of 32 and what follows the last
    with torch.no_grad():
        logp = model(ids[:-1].view(6, 32)).logits.log_softmax(-1)
    nats = -logp.gather(2, ids[1:].view(6, 32, 1)).sum().item()
    assert found["books"]["perplexity"] == pytest.approx(float(torch.tensor(nats / 192).exp()), rel=1e-4)
    assert found["books"]["tokens"] == 192 and set(found) == {"books", "web"}
