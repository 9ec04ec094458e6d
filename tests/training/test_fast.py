"""The faster step computes what transformers computes, for what it takes over and for what it leaves alone."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm, silu
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from components.models import kernels
from components.training import fast

V, T = 48, 12
SIZES = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
GPT2 = {"vocab_size": V, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
TAKEN = {
    "llama": {**SIZES, "num_key_value_heads": 4},
    "llama with grouped heads, biases, untied": {**SIZES, "num_key_value_heads": 2, "attention_bias": True, "tie_word_embeddings": False},
    "mistral": {**SIZES, "num_key_value_heads": 2, "sliding_window": None},
    "mistral with a short window": {**SIZES, "num_key_value_heads": 4, "sliding_window": 4},
    "qwen2": {**SIZES, "num_key_value_heads": 4},
}
LEFT = {
    "gpt2": GPT2,
    "mixtral": {**SIZES, "num_key_value_heads": 4, "num_local_experts": 2},
    "gemma2": {**SIZES, "num_key_value_heads": 4, "head_dim": 8, "final_logit_softcapping": 2.0},
    "qwen3": {**SIZES, "num_key_value_heads": 4, "head_dim": 8},
}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fast, "keep_freed_memory", lambda: True)  # for the whole process: the other tests keep their allocator
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model(name: str) -> Any:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(name.split()[0], **{**TAKEN, **LEFT}[name]))
    for parameter in made.parameters():  # biases and norms that are not 0 and 1, logits worth a cap
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.train()


def rows(count: int = 3) -> Tensor:
    return torch.randint(V, (count, T + 1), generator=torch.Generator().manual_seed(1))


def plain(network: nn.Module, batch: Tensor, **inputs: Any) -> Tensor:
    logits = network(input_ids=batch[:, :-1], use_cache=False, **inputs).logits
    return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def assert_alike(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=2e-6 * max(1.0, float(gradient.abs().max())), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", [*TAKEN, *LEFT])
def test_loss_and_gradients_are_those_of_transformers_and_names_stay(name: str) -> None:
    network, batch = model(name), rows()
    names, theirs = list(network.state_dict()), plain(network, batch)
    their_gradients = gradients(network, theirs)
    taken = fast.prepare(network)
    assert taken == (2 if name in TAKEN else 0)
    mine = fast.next_token_loss(network, batch[:, :-1], batch[:, 1:])
    torch.testing.assert_close(mine.loss, theirs, rtol=1e-5, atol=1e-5)
    assert_alike(gradients(network, mine.loss), their_gradients)
    assert list(network.state_dict()) == names
    assert int(mine.count) == 3 * T


def test_the_blocks_are_really_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    swiglu = kernels.swiglu
    monkeypatch.setattr(kernels, "swiglu", lambda gate, up: calls.append(1) or swiglu(gate, up))
    network = model("llama")
    fast.next_token_loss(network, rows()[:, :-1], rows()[:, 1:])
    assert not calls
    fast.prepare(network)
    fast.next_token_loss(network, rows()[:, :-1], rows()[:, 1:])
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_z_loss_smoothing_and_targets_that_do_not_count_are_the_same_on_every_way(name: str) -> None:
    network, batch = model(name), rows()
    fast.prepare(network)
    targets = batch[:, 1:].clone()
    targets[:, :5] = -100
    found = fast.next_token_loss(network, batch[:, :-1], targets, z_loss=0.01, label_smoothing=0.1)
    logits = network(input_ids=batch[:, :-1]).logits[:, 5:].flatten(0, 1)
    wanted = targets[:, 5:].flatten()
    nats = cross_entropy(logits, wanted)
    torch.testing.assert_close(found.loss, cross_entropy(logits, wanted, label_smoothing=0.1) + 0.01 * logits.logsumexp(-1).square().mean())
    torch.testing.assert_close(found.nats, nats)
    assert int(found.count) == len(wanted)
    each = fast.next_token_losses(network, batch[:, :-1], targets)
    assert each.shape == targets.shape and not each[:, :5].any()
    torch.testing.assert_close(each[:, 5:].mean(), nats)


@pytest.mark.parametrize(("name", "whole"), [("llama", False), ("gpt2", False), ("gemma2", True)])
def test_logits_stand_whole_only_where_the_model_does_more_than_multiply(name: str, whole: bool) -> None:
    network, seen = model(name), []
    fast.next_token_loss(network, rows()[:, :-1], rows()[:, 1:])  # the model is tried once
    network.get_output_embeddings().register_forward_hook(lambda head, args, out: seen.append(out.ndim))
    fast.next_token_loss(network, rows()[:, :-1], rows()[:, 1:])
    assert seen == [3 if whole else 0]


def test_masked_tokens_of_an_encoder_are_asked_for_alike() -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "global_attn_every_n_layers": 1, "attention_dropout": 0.0, "mlp_dropout": 0.0, "pad_token_id": 0, "reference_compile": False}
    network = AutoModelForMaskedLM.from_config(AutoConfig.for_model("modernbert", **sizes)).train()
    ids, targets = rows()[:, :-1], torch.full((3, T), -100)
    targets[:, ::4] = ids[:, ::4]
    found = fast.next_token_loss(network, ids, targets)
    torch.testing.assert_close(found.loss, cross_entropy(network(input_ids=ids).logits.flatten(0, 1), targets.flatten()))
    assert int(found.count) == 9


def test_generation_masks_caches_and_autocast_take_transformers_own_way() -> None:
    network = model("llama").eval()
    ids = rows()[:, :-1]
    mask = torch.ones_like(ids)
    mask[0, :4] = 0

    def results() -> list[Tensor]:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            cast = network(input_ids=ids).logits
        with torch.no_grad():
            masked = network(input_ids=ids, attention_mask=mask).logits
            packed = network(input_ids=ids, position_ids=torch.arange(T).remainder(5)[None], use_cache=False).logits
            return [cast, masked, packed, network.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)]

    before = results()
    fast.prepare(network)
    for a, b in zip(results(), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_layer_that_was_replaced_or_watched_keeps_its_own_forward() -> None:
    network, seen = model("llama"), []
    fast.prepare(network)
    fast.next_token_loss(network, rows()[:, :-1], rows()[:, 1:])  # the model is tried once
    watched = network.model.layers[0].mlp.up_proj
    watched.register_forward_hook(lambda *call: seen.append(1))
    replaced = network.model.layers[1].self_attn

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    double = Doubled(32, 32, bias=False)
    double.weight = nn.Parameter(replaced.q_proj.weight.detach().clone())
    before = fast.next_token_loss(network, rows()[:, :-1], rows()[:, 1:]).loss
    replaced.q_proj = double
    after = fast.next_token_loss(network, rows()[:, :-1], rows()[:, 1:]).loss
    assert len(seen) == 2
    assert not torch.isclose(before, after)


def test_checkpointed_blocks_and_copies_give_the_same_gradients() -> None:
    network, batch = model("llama"), rows()
    fast.prepare(network)
    expected = gradients(network, fast.next_token_loss(network, batch[:, :-1], batch[:, 1:]).loss)
    twin = copy.deepcopy(network)
    network.gradient_checkpointing_enable({"use_reentrant": False})
    assert_alike(gradients(network, fast.next_token_loss(network, batch[:, :-1], batch[:, 1:]).loss), expected)
    for parameter in network.parameters():
        parameter.data.zero_()
    assert_alike(gradients(twin, fast.next_token_loss(twin, batch[:, :-1], batch[:, 1:]).loss), expected)


def test_blocks_keep_the_name_by_which_others_find_them_and_twice_prepared_is_once() -> None:
    network = model("llama")
    assert fast.prepare(network) == 2
    classes = [type(block) for block in network.model.layers]
    assert {c.__name__ for c in classes} == set(network._no_split_modules)
    assert fast.prepare(network) == 0
    assert [type(block) for block in network.model.layers] == classes


# ---------------------------------------------------------------- kernels


@pytest.mark.parametrize("threads", [1, 3])
def test_swiglu_is_silu_times_up_forward_and_backward_for_small_and_huge_numbers(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    gate, up = torch.randn(2, 301, 352) * 10 ** torch.linspace(-3, 2, 301)[:, None]
    by_out = torch.randn(301, 352)
    wide = torch.stack((gate, up)).double().requires_grad_()
    expected = silu(wide[0]) * wide[1]
    (by_both,) = torch.autograd.grad(expected, wide, by_out.double())
    torch.testing.assert_close(kernels.swiglu(gate, up), expected.float(), rtol=1e-6, atol=1e-7)
    kernels.swiglu_backward(gate, up, by_out)
    torch.testing.assert_close(torch.stack((gate, up)), by_both.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_out, expected.float(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("threads", [1, 3])
def test_normalisation_is_torchs_rms_norm_and_adds_the_other_gradient(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, by_scaled, by_x = torch.randn(701, 96) * 3, torch.randn(701, 96), torch.randn(701, 96)
    weight = torch.randn(96)
    wide, wide_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = rms_norm(wide, (96,), wide_weight, eps=1e-6)
    by_wide, by_wide_weight = torch.autograd.grad(expected, (wide, wide_weight), by_scaled.double())
    unit, scaled, inverse = kernels.normalise(x, weight, 1e-6)
    torch.testing.assert_close(scaled, expected.float())
    mine, by_weight = kernels.normalise_backward(unit, inverse, weight, by_scaled, by_x)
    torch.testing.assert_close(mine, (by_wide + by_x).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_weight, by_wide_weight.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_rotation_is_transformers_own_and_goes_back(groups: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7, 4 + 2 * groups, 8)
    angles = torch.rand(3, 7, 4) * 100
    whole = torch.cat((angles, angles), -1)  # (B, T, D)
    q, k = apply_rotary_pos_emb(x[:, :, :4], x[:, :, 4 : 4 + groups], whole.cos(), whole.sin(), unsqueeze_dim=2)
    turned = x.clone()
    kernels.rotate(turned, angles.cos(), angles.sin(), 4 + groups)
    torch.testing.assert_close(turned, torch.cat((q, k, x[:, :, 4 + groups :]), 2))
    torch.testing.assert_close(kernels.rotate_back(*turned.split([4, groups, groups], 2), angles.cos(), angles.sin()), x)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    made = torch.Generator().manual_seed(0)
    gate, up = torch.randn(2, 1001, 300, generator=made)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        unit, scaled, inverse = kernels.normalise(gate, up[0], 1e-6)
        results.append((kernels.swiglu(gate, up), scaled, *kernels.normalise_backward(unit, inverse, up[0], up, gate)))
    assert all(torch.equal(mine, first) for other in results for mine, first in zip(other, results[0], strict=True))


def test_a_second_backward_pass_through_what_the_first_wrote_over_is_refused() -> None:
    network = model("llama")
    fast.prepare(network)
    loss = fast.next_token_loss(network, rows()[:, :-1], rows()[:, 1:]).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_packed_texts_that_do_not_see_each_other_are_taken_over_too(monkeypatch: pytest.MonkeyPatch) -> None:
    network, batch = model("llama"), rows()
    positions = torch.arange(T).remainder(5).expand(3, -1)
    calls: list[int] = []
    swiglu = kernels.swiglu
    monkeypatch.setattr(kernels, "swiglu", lambda gate, up: calls.append(1) or swiglu(gate, up))
    expected = gradients(network, plain(network, batch, position_ids=positions))
    fast.prepare(network)
    assert_alike(gradients(network, plain(network, batch, position_ids=positions)), expected)
    assert len(calls) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept() -> None:
    code = """
import resource, torch
from components.training import fast
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.ones(2**20)
before = faults()
kept = fast.keep_freed_memory()
for _ in range(4):
    faults()  # until there is a piece with room for the alignment
print(kept, before, faults())
"""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}  # what glibc does with large tensors until it has learnt
    kept, before, after = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert kept == "True" and int(before) >= 5 * 2 and int(after) < int(before) / 10  # 5 tensors of 4 MiB: 2 faults each where pages are huge
