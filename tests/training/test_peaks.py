"""The table of peaks is what the chips' own numbers give, and FLOPs per token are what the products of a model add up to."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from components.training.peaks import flops_per_token, listed_peak, measured_peak, multiplied_parameters

# name as torch gives it: multiprocessors, boost clock in GHz, 16-bit tensor operations per multiprocessor and clock (white papers' tables)
CHIPS = {
    "NVIDIA H100 80GB HBM3": (132, 1.830, 4096),
    "NVIDIA H200": (132, 1.830, 4096),
    "NVIDIA H100 PCIe": (114, 1.620, 4096),
    "NVIDIA A100-SXM4-80GB": (108, 1.410, 2048),
    "Tesla V100-SXM2-16GB": (80, 1.530, 1024),
    "Tesla T4": (40, 1.590, 1024),
    "NVIDIA L4": (58, 2.040, 1024),
    "NVIDIA L40S": (142, 2.520, 1024),
    "NVIDIA A10": (72, 1.695, 1024),
    "NVIDIA A10G": (80, 1.710, 512),
    "NVIDIA GeForce RTX 4090": (128, 2.520, 512),
    "NVIDIA GeForce RTX 3090": (82, 1.695, 512),
    "NVIDIA RTX A6000": (84, 1.800, 1024),
}


@pytest.mark.parametrize("name", CHIPS)
def test_a_listed_peak_is_multiprocessors_times_clock_times_operations(name):
    multiprocessors, clock, operations = CHIPS[name]
    assert listed_peak(name, "fp16") == pytest.approx(multiprocessors * clock * 1e9 * operations, rel=0.01)


def test_neighbours_in_the_table_are_told_apart():
    assert listed_peak("NVIDIA H100 NVL", "bf16") == 835.5e12
    assert listed_peak("NVIDIA GB200", "bf16") != listed_peak("NVIDIA B200", "bf16")
    assert listed_peak("NVIDIA L4", "bf16") != listed_peak("NVIDIA L40S", "bf16")


def test_what_is_not_known_has_no_peak():
    assert listed_peak("NVIDIA Tomorrow 9000", "bf16") is None
    assert listed_peak("Tesla V100-SXM2-16GB", "bf16") is None  # it has none


def test_a_cpu_is_measured_once_and_can_multiply():
    assert measured_peak("fp32", 1) > 1e9
    assert measured_peak("fp32", 1) is measured_peak("fp32", 1)


def tiny(architecture, **fields):
    config = AutoConfig.for_model(architecture, vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=8, **fields)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("tied", [True, False])
def test_flops_per_token_are_those_torch_counts(tied):
    model, tokens = tiny("llama", tie_word_embeddings=tied), 24
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, tokens, dtype=torch.long), use_cache=False).logits.sum().backward()
    # not counted by torch: norms' weights (in N), and the first layer's input needs no gradient (in ours it is as if)
    assert flops_per_token(model, tokens) == pytest.approx(counter.get_total_flops() / (2 * tokens), rel=0.03)


def test_of_a_mixture_only_the_visited_experts_count():
    model = tiny("mixtral", num_local_experts=4, num_experts_per_tok=1)
    everything, experts = sum(p.numel() for p in model.parameters()), sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    looked_up = 0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    assert experts > 0
    assert multiplied_parameters(model) == pytest.approx(everything - looked_up - 0.75 * experts)
