"""GGUF: read by transformers' own reader of such files, and, where it is installed, by llama.cpp."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import unicodedata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

from components.data.tokenizing.tokenizer import CHAT_TEMPLATE, WORDS
from components.models.build import load_tokenizer
from components.schema.config import BadInput
from components.schema.export import ExportConfig
from tests.export import models

pytest.importorskip("gguf", reason="gguf is not installed: pip install 'modelyard[export]'")

from components.export import export, gguf_file, gguf_tokenizer

KINDS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**models.SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**models.SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**models.SIZES, head_dim=32, sliding_window=None),
}
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_2 = LLAMA_3.replace("{1,3}", "")


def by_llama_cpp(test: Any) -> Any:
    """Run where llama-cpp-python is; it is slow, since each file is read in a process of its own."""
    missing = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed (it is built from source: pip install llama-cpp-python)")
    return pytest.mark.slow(missing(test))


def split(expression: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), models.gpt2_words()])


def written(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch | None = None, **options: Any) -> dict[str, Any]:
    """The figures of an export; with `monkeypatch`, without llama.cpp's own check."""
    if monkeypatch:
        monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    return export.run(ExportConfig(to="gguf", **options), model, out, lambda event: None).figures


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_same_model_and_tokenizer_out_of_the_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = models.model(tmp_path / "model", KINDS[kind]), tmp_path / "out"
    written(model, out, monkeypatch, numbers="f32")
    ids = torch.randint(5, 300, (2, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(model)(input_ids=ids).logits
        after = AutoModelForCausalLM.from_pretrained(out, gguf_file=gguf_file.FILE)(input_ids=ids).logits
    assert torch.allclose(before, after, atol=1e-4) and before.std() > 0.1
    assert AutoTokenizer.from_pretrained(out, gguf_file=gguf_file.FILE).get_vocab().items() >= AutoTokenizer.from_pretrained(model).get_vocab().items()


@pytest.mark.parametrize(("numbers", "bits"), [("f32", 32), ("f16", 16), ("q8_0", 8.5)])
def test_matrices_take_the_bits_that_were_asked_for(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: str, bits: float) -> None:
    figures = written(llama, tmp_path, monkeypatch, numbers=numbers)
    matrices = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(llama).parameters() if p.ndim > 1)
    assert matrices * bits / 8 < figures["bytes"] < matrices * bits / 8 + 20_000


@pytest.mark.parametrize(
    ("words", "ignore_merges", "name"),
    [(models.gpt2_words(), False, "gpt-2"), (digits(), False, "smollm"), (split(WORDS), False, "qwen2"), (split(LLAMA_3), True, "llama-bpe"), (split(LLAMA_3), False, "smaug-bpe")],
)
def test_a_tokenizer_that_llama_cpp_has_gets_its_name(tmp_path: Path, words: Any, ignore_merges: bool, name: str) -> None:
    models.tokenizer(tmp_path, words, ignore_merges)
    found = gguf_tokenizer.read(tmp_path, rows=330)
    assert found.pre == name and found.special == {"eos": 4, "pad": 0} and found.kinds[:6] == [3, 3, 3, 3, 3, 1]
    assert found.tokens[4] == "<|end|>" and found.tokens[-1] == "[PAD329]" and found.kinds[-1] == 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (split(QWEN_2.replace(r"\s+(?!\S)|", "")), "none of llama.cpp's expressions"),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), "cuts text by ByteLevel"),
        (pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), models.gpt2_words()]), "in this form"),
    ],
)
def test_a_tokenizer_that_is_only_nearly_llama_cpps_is_refused(tmp_path: Path, words: Any, says: str) -> None:
    models.tokenizer(tmp_path, words)
    with pytest.raises(BadInput, match=rf"(?s){says}.*tokenize some texts otherwise.*--tokenizer apart"):
        gguf_tokenizer.read(tmp_path, rows=400)


def test_text_that_is_changed_first_is_refused_but_for_composed_characters(tmp_path: Path) -> None:
    models.tokenizer(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    for normalizer, is_had in ((normalizers.NFC(), True), (normalizers.Lowercase(), False)):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**whole, "normalizer": json.loads(normalizer.__getstate__())}))
        if is_had:
            assert gguf_tokenizer.read(tmp_path, rows=400).composed
        else:
            with pytest.raises(BadInput, match="changes text before it is tokenized"):
                gguf_tokenizer.read(tmp_path, rows=400)


def test_the_template_loses_its_marks_for_training_and_writes_the_same(tmp_path: Path) -> None:
    models.tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT_TEMPLATE}))
    template = gguf_tokenizer.read(tmp_path, rows=400).template
    assert template and "generation %}" not in template.replace("add_generation_prompt %}", "")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "hey"}]
    words = AutoTokenizer.from_pretrained(tmp_path)
    for prompt in (True, False):
        ours, theirs = (words.apply_chat_template(turns, chat_template=text, tokenize=False, add_generation_prompt=prompt) for text in (CHAT_TEMPLATE, template))
        assert ours == theirs and ours.count("<|end|>") == 3


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (MistralConfig(**models.SIZES, sliding_window=16), "sliding_window=16"),
        (LlamaConfig(**models.SIZES, hidden_act="gelu"), "hidden_act='gelu'"),
        (LlamaConfig(**models.SIZES, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}), "rope_type='linear'"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused_before_anything_is_written(tmp_path: Path, config: PreTrainedConfig, says: str) -> None:
    model, out = models.model(tmp_path / "model", config), tmp_path / "out"
    with pytest.raises(BadInput, match=f"{says} is not written to GGUF here"):
        written(model, out)
    assert not out.exists()


@by_llama_cpp
@pytest.mark.parametrize("numbers", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_tokenizes_and_computes_the_same(kind: str, numbers: str, tmp_path: Path) -> None:
    cuts = {"qwen2": split(QWEN_2)}
    if kind != "mistral":
        cuts |= {"gpt2": models.gpt2_words(), "llama3": split(LLAMA_3), "smollm": digits()}
    for name, words in cuts.items():
        figures = written(models.model(tmp_path / name, KINDS[kind], words), tmp_path / f"{name}-out", numbers=numbers)
        assert figures["check_llama_cpp"]["logit_difference_max"] < {"f32": 1e-4, "f16": 5e-2, "q8_0": 1.0}[numbers] and "7 texts tokenized alike" in figures["llama_cpp"]


def odd_texts(count: int) -> list[str]:
    """Letters, digits, spaces, signs, line ends and combining marks of many scripts, drawn at random; and each character that has a name, between others."""
    pools = ["abcXYZéßÜñ漢字かな", "0123456789٣४½²", " \t\n\r\u00a0\u3000\u2009\u0085", "+-*/=.,!?'\"()[]{}<>|#$%&_~`^:;", "😀🏽\u200d♂\ufe0f\u0301\u0323\ufeff\x1f", "'s't're've'm'll'd'S'T"]
    draw = random.Random(0)
    drawn = ["".join(draw.choice(draw.choice(pools)) for _ in range(draw.randint(1, 40))) for _ in range(count)]
    named = [chr(i) for i in range(1, 0x110000) if unicodedata.category(chr(i)) not in ("Cn", "Cs", "Co")]
    return [*drawn, *("".join(f"a{c}b 1{c}2 .{c}. {c}{c}\n{c}" for c in named[i : i + 500]) for i in range(0, len(named), 500))]


@by_llama_cpp
def test_llama_cpp_reads_any_text_as_the_data_line_does(tmp_path: Path) -> None:
    model = models.model(tmp_path / "model", words=split(WORDS))
    written(model, tmp_path / "out", numbers="f32")
    texts = odd_texts(3000)
    request = json.dumps({"file": str(tmp_path / "out" / gguf_file.FILE), "texts": texts, "ids": [], "context": 64})
    done = subprocess.run([sys.executable, "-m", "components.export.llama_cpp_check"], input=request, capture_output=True, text=True, check=True)
    tokenizer = load_tokenizer(model)
    for text, ids in zip(texts, json.loads(done.stdout.splitlines()[-1])["ids"], strict=True):
        assert ids == tokenizer(text)["input_ids"], repr(text[:60])


@by_llama_cpp
def test_a_name_that_is_only_nearly_right_is_found_by_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_tokenizer, "_name", lambda words: "qwen2")
    with pytest.raises(BadInput, match=r"llama\.cpp tokenizes .* and the model was trained with"):
        written(models.model(tmp_path / "model", KINDS["qwen2"], models.gpt2_words()), tmp_path / "out")


@by_llama_cpp
def test_llama_cpp_adds_the_biases_that_transformers_adds(tmp_path: Path) -> None:
    model = models.model(tmp_path / "model", LlamaConfig(**models.SIZES, attention_bias=True, mlp_bias=True))
    assert written(model, tmp_path / "out", numbers="f32")["check_llama_cpp"]["logit_difference_max"] < 1e-4


@by_llama_cpp
def test_a_file_that_computes_another_model_is_found_by_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "PAIRED", ())  # queries and keys in transformers' order: reading back alone cannot see that it is wrong
    with pytest.raises(BadInput, match="it computes another model"):
        written(models.model(tmp_path / "model"), tmp_path / "out", numbers="f32")
