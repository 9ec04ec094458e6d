"""Matrices of 8 and 4 bits: what is written is what is read, by the loader that everything else uses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from components.evaluation.local_model import load_model
from components.export import export, fewer_bits
from components.models import quantized
from components.models.build import load
from components.models.decoding import Blocks, decoder_for
from components.schema.config import BadInput
from components.schema.export import ExportConfig

pytest.importorskip("torchao", reason="torchao is not installed: pip install 'modelyard[quantize]'")


@pytest.fixture(scope="module", params=["int8", "int4"])
def exported(request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict]:
    """The form, its folder and its figures; the timing is left out, since it says nothing here."""
    out = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fewer_bits, "latency", lambda folder: 0.0)
        outcome = export.run(ExportConfig(to=request.param), llama, out, lambda event: None)
    return request.param, out, outcome.figures


def test_every_4_bit_value_comes_back_from_half_a_byte() -> None:
    values = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).to(torch.int8)  # (256, 2): every byte once
    packed = quantized.pack(values)
    assert packed.dtype == torch.uint8 and packed.unique().numel() == 256
    assert torch.equal(quantized.unpack(packed), values)


def test_the_weights_are_smaller_by_the_bits_that_they_lost(exported: tuple[str, Path, dict], llama: Path) -> None:
    form, out, figures = exported
    matrices = sum(p.numel() for name, p in AutoModelForCausalLM.from_pretrained(llama).named_parameters() if "proj" in name)
    bits, group = (8, 64) if form == "int8" else (4, 32)  # int8: a row of 64 or 96 has one scale
    saved = figures["bytes_before"] - figures["bytes"]
    expected = matrices * (4 - bits / 8) - 5 * matrices / group
    assert saved == pytest.approx(expected, rel=0.15), "the file loses what the matrices lose, but for scales and the header"
    assert {path.suffix for path in out.iterdir()} == {".safetensors", ".json"}, "nothing that would run when it is read"


def test_what_is_read_back_answers_nearly_as_the_original_and_says_how_nearly(exported: tuple[str, Path, dict], llama: Path) -> None:
    form, out, figures = exported
    ids = torch.randint(5, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        original, back = (load(folder).eval()(input_ids=ids).logits for folder in (llama, out))
    assert 0 < (original - back).abs().max() < original.abs().max() / (10 if form == "int8" else 1)
    assert figures["check"]["kl_mean"] < (0.01 if form == "int8" else 1.0) and figures["check"]["positions"] > 200


@pytest.mark.parametrize(("bits", "group", "last"), [("int8", 64, 127), ("int4", 32, 7)])
def test_weights_are_rounded_no_worse_than_by_hand(llama: Path, bits: str, group: int, last: int) -> None:
    name = "model.layers.0.mlp.up_proj"
    weight = load(llama).get_submodule(name).weight.detach()
    small = quantized.quantize(llama, bits).get_submodule(name).weight.dequantize().detach()
    rows = weight.view(-1, group)
    step = rows.abs().amax(1, keepdim=True) / last  # the largest weight of a group is the last step
    by_hand = ((rows / step).round() * step - rows).square().mean()
    assert 0 < (small - weight).square().mean() <= 1.05 * by_hand  # torchao takes 127.5 steps for 127


def test_the_evaluation_reads_it_and_no_pass_of_our_own_takes_its_weights_for_numbers(exported: tuple[str, Path, dict]) -> None:
    _, out, _ = exported
    read = load_model(out, batch_size=2, device="cpu").model
    decoder = decoder_for(read, [[5, 6, 7]], torch.tensor([0]), 0, 4)
    assert not isinstance(decoder, Blocks)
    with torch.no_grad():
        expected = read(input_ids=torch.tensor([[5, 6, 7]])).logits[:, -1]
    assert torch.allclose(decoder.logits, expected, atol=1e-5)


def test_groups_that_do_not_divide_a_row_are_refused_before_the_model_is_loaded(llama: Path, tmp_path: Path) -> None:
    only_settings = tmp_path / "model"
    only_settings.mkdir()
    shutil.copyfile(llama / "config.json", only_settings / "config.json")
    with pytest.raises(BadInput, match=r"group_size=128 does not divide hidden_size=64, intermediate_size=96.*Use --group-size 32"):
        export.run(ExportConfig(to="int4", group_size=128), only_settings, tmp_path / "out", lambda event: None)


def test_quantised_weights_are_not_rounded_again(exported: tuple[str, Path, dict], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"quantised weights already.*Export the model that it was made from"):
        export.run(ExportConfig(to="int4"), exported[1], tmp_path / "out", lambda event: None)
