"""safetensors: what others load, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from components.export import export, weights
from components.schema.config import BadInput
from components.schema.export import ExportConfig
from components.schema.records import file_md5


def test_the_folder_is_what_transformers_loads_without_what_only_we_read(llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama, tmp_path / "stage")
    for name in ("record.json", "curve.jsonl", "watch.jsonl", "template.json"):
        (model / name).write_text("{}")
    out = tmp_path / "out"
    figures = export.run(ExportConfig(to="safetensors"), model, out, lambda event: None).figures
    assert {path.name for path in out.iterdir()} == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert file_md5(out / "model.safetensors") == file_md5(llama / "model.safetensors")
    network, words = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert figures["parameters"] == sum(p.numel() for p in network.parameters()) and words("the tide")["input_ids"]
    assert figures["check"]["logit_difference_max"] == 0 and figures["check"]["same_likeliest"] == 1


def test_a_copy_that_is_not_the_same_is_found(llama: Path, tmp_path: Path) -> None:
    out = shutil.copytree(llama, tmp_path / "out")
    file = out / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(BadInput, match=r"is not the one in .*so the copy is damaged"):
        weights._same_tensors(llama, out)


@pytest.mark.parametrize(("name", "says"), [("config.json", "config.json cannot be read"), ("model.safetensors", "model.safetensors does not exist"), ("tokenizer.json", "tokenizer.json does not exist")])
def test_a_folder_that_others_could_not_load_is_refused_first(llama: Path, tmp_path: Path, name: str, says: str) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    (model / name).unlink()
    with pytest.raises(BadInput, match=says):
        export.run(ExportConfig(to="safetensors"), model, tmp_path / "out", lambda event: None)
    assert not (tmp_path / "out").exists()


def test_a_reward_model_goes_to_safetensors_and_to_nothing_that_writes_text(llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    config = (model / "config.json").read_text().replace("LlamaForCausalLM", "LlamaForSequenceClassification")
    (model / "config.json").write_text(config)
    assert "check" not in export.run(ExportConfig(to="safetensors"), model, tmp_path / "out", lambda event: None).figures
    for form in ("int8", "gguf", "onnx"):
        with pytest.raises(BadInput, match=rf"is a LlamaForSequenceClassification, and {form} is written for models that predict the next token"):
            export.run(ExportConfig(to=form), model, tmp_path / form, lambda event: None)


def test_a_model_that_answers_otherwise_shows_in_the_figures() -> None:
    from components.export.agreement import compare

    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    other = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    same, apart = compare(logits, logits), compare(logits, other)
    assert (same.largest, same.kl, same.same) == (0, 0, 1)
    p = logits[1].softmax(-1)
    by_hand = float((p[1] - p[2]) * 3) / 2  # KL of the second row, by hand: only two logits change places
    assert apart.largest == 3 and apart.same == 0.5 and apart.kl == pytest.approx(by_hand, rel=1e-6)
    with pytest.raises(BadInput, match="numbers that are not finite"):
        compare(logits, logits * float("nan"))
    with pytest.raises(BadInput, match=r"logits of shape \(1, 3\) instead of \(2, 3\)"):
        compare(logits, logits[:1])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"to": "exe"}, "to='exe': input should be 'safetensors', 'gguf'"),
        ({"to": "int8", "numbers": "q8_0"}, "numbers='q8_0' belongs to gguf and the export is to int8: it would be ignored"),
        ({"to": "int4", "group_size": 48}, "group_size=48: input should be 32, 64 or 128"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        ExportConfig.asked(**options)


def test_only_its_own_options_decide_what_an_export_is() -> None:
    assert ExportConfig(to="int8").defining() == {"to": "int8"}
    assert ExportConfig(to="int4").defining() == {"to": "int4", "group_size": 32}
