"""Task heads: they learn, their metrics are those of the benchmarks, and padding, place and interruption change nothing."""

import random

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from components.models.build import build, load_tokenizer, save
from components.models.heads import task_model_from
from components.schema.config import BadInput
from components.schema.posttraining import SFTConfig, TaskConfig
from components.schema.recipe import Resources
from components.schema.training import ModelConfig
from components.training import sft, tasks
from components.training.batches import read_rows
from components.training.template import encode_prompts
from components.training.trainer import Context

from .conftest import PLAN, write_rows
from .test_resume import Killed, interrupt_at, outputs

CLASSES, SPANS = {"task": {"kind": "classification"}}, {"task": {"kind": "question_answering"}}
NAMES = ("cat", "mat", "hat")


def chat(said, answer):
    return [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]


def labelled(i):
    """The label is the animal, wherever it stands."""
    draw = random.Random(i)
    name = draw.choice(NAMES)
    said = " ".join(draw.sample(["the", "1", name, "2"], 4))
    return {"messages": chat(said, name), "label": name, "kind": ("seen", "heard")[i % 2]}


def placed(i):
    """The answer is the number; a few contexts have none."""
    draw = random.Random(i)
    number = str(draw.randint(0, 9))
    words = draw.sample(["the cat", "mat", "sat on", "what"], 3)
    if i % 8 == 0:
        context, span = " ".join(words), None
    else:
        words.insert(draw.randint(0, 3), number)
        context = " ".join(words)
        span = [context.index(number), context.index(number) + 1]
    return {"messages": chat(f"is?\n{context}", number if span else "no"), "context": context, "span": span, "answers": [number] if span else [""], "kind": "place"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task-rows")
    return {"classification": write_rows(folder / "labels", labelled, 300, 60), "question_answering": write_rows(folder / "places", placed, 300, 60)}


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tokenizer_folder):
    """A causal model and an encoder, with random weights."""
    made = {}
    for architecture, objective in (("llama", "next_token"), ("modernbert", "masked")):
        made[architecture] = tmp_path_factory.mktemp(architecture)
        config = ModelConfig(architecture=architecture, hidden_size=32, layers=2, heads=2, intermediate_size=64, context_tokens=64)
        save(build(config, load_tokenizer(tokenizer_folder), 0, objective), tokenizer_folder, made[architecture])
    return made


def run(base, folder, out, context=None, **changes):
    plan = {**PLAN, "steps": 12, "batch_size": 8, "learning_rate": 3e-3, "heldout_chats": 60, **changes}
    return sft.run(SFTConfig(**plan), base, folder, out, context or Context(seed=5))


# ---------------------------------------------------------------- they learn


@pytest.mark.parametrize("architecture", ["llama", "modernbert"])
def test_a_classifier_learns_and_plain_transformers_reads_it(bases, rows, tmp_path, architecture):
    outcome = run(bases[architecture], rows["classification"], tmp_path, steps=150, **CLASSES)
    figures = outcome.figures
    assert figures["accuracy_after"] > 0.95 > 0.7 > figures["accuracy_before"]
    assert set(figures["labels"]) == set(NAMES) and sum(figures["labels"].values()) == figures["examples"] == 300
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    words = load_tokenizer(tmp_path)
    row = read_rows(rows["classification"] / "heldout.jsonl")[0]
    ids = torch.tensor([encode_prompts(words, [row["messages"][:-1]])[0]])
    assert model.config.id2label[model(ids).logits.argmax().item()] == row["label"]
    assert outcome.samples[0].output == f"{row['label']} [right: {row['label']}]"


@pytest.mark.parametrize("architecture", ["llama", "modernbert"])
def test_a_reader_learns_where_the_answer_is_and_when_there_is_none(bases, rows, tmp_path, architecture):
    figures = run(bases[architecture], rows["question_answering"], tmp_path, steps=250, batch_size=16, **SPANS).figures
    assert figures["exact_match_after"] > 0.9 > 0.5 > figures["exact_match_before"]
    assert figures["f1_after"] >= figures["exact_match_after"]
    assert 0.05 < figures["unanswerable"] < 0.2
    assert AutoModelForQuestionAnswering.from_pretrained(tmp_path).config.architectures[0].endswith("ForQuestionAnswering")


# ---------------------------------------------------------------- metrics


def test_squads_metrics_by_hand():
    assert tasks.word_f1("the cat sat", "a cat sat down") == pytest.approx(2 * 1.0 * (2 / 3) / (1.0 + 2 / 3))
    assert tasks.word_f1("", "") == 1 and tasks.word_f1("x", "") == 0 and tasks.word_f1("dog", "cat") == 0
    told = tasks.squad_metrics(["The Ulm!", "", "near Ulm"], [("Ulm", "in Ulm"), ("",), ("in Ulm", "Bonn")])
    assert told["exact_match"] == pytest.approx(2 / 3)
    assert told["f1"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert told["exact_match_stderr"] == pytest.approx(((1 / 3) / 3) ** 0.5)  # variance of 1, 1, 0 is 1/3


def test_classifications_metrics_by_hand():
    told = tasks.classification_metrics(["a", "a", "b", "a"], ["a", "b", "b", "b"], ("a", "b", "c"))
    assert told["accuracy"] == 0.5 and told["accuracy_stderr"] == pytest.approx(0.25)
    assert told["f1_by_label"] == {"a": pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1)), "b": pytest.approx(2 * 1 * (1 / 3) / (1 + 1 / 3)), "c": 0}
    assert told["macro_f1"] == pytest.approx(1 / 3)


def test_the_best_span_is_the_one_that_trying_all_finds():
    draw = torch.Generator().manual_seed(0)
    for _ in range(30):
        start, end = torch.randn(50, generator=draw), torch.randn(50, generator=draw)
        window, nowhere = (5, 47), 49
        tried = {(s, e): float(start[s] + end[e]) for s in range(5, 48) for e in range(s, min(s + tasks.LONGEST_ANSWER_TOKENS, 48))}
        best = max(tried, key=tried.get)
        assert tasks.best_span(start, end, window, nowhere) == (None if start[nowhere] + end[nowhere] > tried[best] else best)
        start[nowhere] = 99
        assert tasks.best_span(start, end, window, nowhere) is None


# ---------------------------------------------------------------- rows


def test_an_answers_tokens_say_the_answer_again_and_texts_are_what_a_chat_model_is_given(tokenizer_folder, tmp_path):
    words = load_tokenizer(tokenizer_folder)
    context = "Zoë läuft nach Ärös, 123 Meter weit."
    rows = [{"messages": chat(f"Wohin?\n{context}", answer), "context": context, "span": [context.index(answer), context.index(answer) + len(answer)]} for answer in ("Ärös", "Zoë", "123", "Meter weit.")]
    task = tasks.QuestionAnswering(words)
    for row, example in zip(rows, task.examples(rows, "here"), strict=True):
        assert example.ids == encode_prompts(words, [row["messages"][:-1]])[0]
        assert task._answer(example, example.right) == row["messages"][-1]["content"] == example.answers[0]
        first, last = example.window
        assert words.decode(example.ids[first : last + 1]).strip() == context


@torch.no_grad()
def test_more_padding_changes_neither_loss_nor_prediction(bases, rows):
    for kind, architecture in (("classification", "llama"), ("question_answering", "llama"), ("question_answering", "modernbert")):
        words = load_tokenizer(bases[architecture])
        path = rows[kind] / "heldout.jsonl"
        task = tasks.make(TaskConfig(kind=kind), words, read_rows(path), path)
        model, _ = task_model_from(bases[architecture], kind, task.labels, 0, words.pad_token_id)
        examples, _ = tasks.read(task, path, 64)
        examples = sorted(examples, key=lambda e: len(e.ids))
        alone, said = tasks.measure(task, model, examples[:4], 1, words.pad_token_id)
        model.eval()
        batch = tasks.collate([*examples[:4], examples[-1]], words.pad_token_id)
        assert task.losses(model, batch)[:4].mean().item() == pytest.approx(alone["heldout_loss"], rel=1e-5)
        assert task.predictions(model, batch, [*examples[:4], examples[-1]])[:4] == said


def test_the_trunk_is_the_language_models_under_either_head(bases):
    from safetensors.torch import load_file

    trunk = {name.removeprefix("model."): value for name, value in load_file(bases["llama"] / "model.safetensors").items() if "lm_head" not in name}
    for kind in ("classification", "question_answering"):
        model, new = task_model_from(bases["llama"], kind, ("a", "b"), 3, 0)
        own = model.base_model.state_dict()
        assert own.keys() == trunk.keys() and all(torch.equal(own[name], trunk[name]) for name in trunk)
        again, _ = task_model_from(bases["llama"], kind, ("a", "b"), 3, 0)
        other, _ = task_model_from(bases["llama"], kind, ("a", "b"), 4, 0)
        assert all(torch.equal(model.get_parameter(name), again.get_parameter(name)) for name in new)
        assert not all(torch.equal(model.get_parameter(name), other.get_parameter(name)) for name in new)


@pytest.mark.parametrize(
    "row, task, message",
    [
        ({"messages": chat("u", "a"), "kind": "x"}, SPANS, r"has 300 chats, 0 with `context` and `span`"),
        ({"messages": chat("u", "a"), "kind": "x"}, CLASSES, "has 0 labels: there is nothing to tell apart"),
        ({"messages": chat("u", "a"), "label": "a", "kind": "x"}, {"task": {"kind": "classification", "labels": ["b", "c"]}}, "label 'a', which is not among b, c"),
        ({"messages": chat("u", "a"), "context": "elsewhere", "span": [0, 1], "kind": "x"}, SPANS, "do not hold its `context`"),
        ({"messages": chat("q abc", "a"), "context": "abc", "span": [2, 5], "kind": "x"}, SPANS, "span .2, 5. in a context of 3 characters"),
    ],
)
def test_rows_that_a_task_cannot_learn_from_are_refused_before_training(bases, tmp_path, row, task, message):
    with pytest.raises(BadInput, match=message):
        run(bases["llama"], write_rows(tmp_path / "rows", lambda i: row, 300, 10), tmp_path / "out", **task)


def test_rows_without_what_the_task_needs_are_left_to_other_tasks_and_counted(bases, rows, tmp_path):
    mixed = write_rows(tmp_path / "rows", lambda i: labelled(i) if i % 3 else {"messages": chat("u", "a"), "kind": "chat"}, 90, 30)
    figures = run(bases["llama"], mixed, tmp_path / "out", mix={"heard": 3}, **CLASSES).figures
    assert (figures["examples"], figures["rows_of_other_tasks"]) == (60, 30)
    assert figures["examples_seen_by_kind"]["heard"] > 2 * figures["examples_seen_by_kind"]["seen"]


def test_a_number_stands_for_the_label_of_that_place(bases, tmp_path):
    numbered = write_rows(tmp_path / "rows", lambda i: {**labelled(i), "label": NAMES.index(labelled(i)["label"])}, 60, 20)
    figures = run(bases["llama"], numbered, tmp_path / "out", task={"kind": "classification", "labels": NAMES}).figures
    assert set(figures["labels"]) == set(NAMES) and sum(figures["labels"].values()) == 60


# ---------------------------------------------------------------- with everything else


def test_with_lora_the_head_trains_too_and_the_result_is_plain(bases, rows, tmp_path):
    notes = []
    run(bases["llama"], rows["classification"], tmp_path, Context(seed=5, emit=lambda e: notes.append(e.get("text", ""))), lora={"rank": 2}, neftune_alpha=5, **CLASSES)
    begun, _ = task_model_from(bases["llama"], "classification", NAMES, 5, 0)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in begun.named_parameters()}
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, begun.get_parameter(name))}
    assert "score.weight" in moved and not any("norm" in name or "embed" in name for name in moved)
    assert any("score.weight" in note for note in notes)


def test_micro_batches_leave_the_task_as_it_is(bases, rows, tmp_path):
    whole = run(bases["llama"], rows["question_answering"], tmp_path / "whole", **SPANS).figures
    parts = run(bases["llama"], rows["question_answering"], tmp_path / "parts", Context(seed=5, resources=Resources(micro_batch_size=3)), **SPANS).figures
    assert parts["heldout_loss_after"] == pytest.approx(whole["heldout_loss_after"], rel=1e-3)


@pytest.mark.parametrize("task", [CLASSES, SPANS])
@pytest.mark.parametrize("step", [3, 9])
def test_killed_at_any_step_a_task_ends_with_the_same_bits(bases, rows, tmp_path, monkeypatch, task, step):
    folder = rows[task["task"]["kind"]]
    whole = run(bases["llama"], folder, tmp_path / "whole", **task)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(Killed):
            run(bases["llama"], folder, tmp_path / "parts", **task)
    again = run(bases["llama"], folder, tmp_path / "parts", **task)
    assert outputs(tmp_path / "parts") == outputs(tmp_path / "whole")
    assert (again.figures, again.samples) == (whole.figures, whole.samples)


def test_an_architecture_without_such_a_head_is_refused(tokenizer_folder, rows, tmp_path):
    config = ModelConfig(architecture="gemma2", hidden_size=32, layers=2, heads=2, intermediate_size=64, context_tokens=64)
    save(build(config, load_tokenizer(tokenizer_folder), 0), tokenizer_folder, tmp_path / "base")
    with pytest.raises(BadInput, match="no head for question_answering on architecture 'gemma2'"):
        run(tmp_path / "base", rows["question_answering"], tmp_path / "out", **SPANS)
