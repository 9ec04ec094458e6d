"""The balance of a mixture of experts: what transformers computes, reachable where the loss is ours."""

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from components.models.build import build
from components.models.routing import asked, balance, router_loss
from components.schema.training import ModelConfig
from tests.models.test_architectures import MIXTURES


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
def test_the_router_loss_of_the_base_model_is_what_transformers_adds_to_its_own_loss(words, architecture):
    model = build(ModelConfig(architecture=architecture, hidden_size=32, layers=2, context_tokens=32, extra=MIXTURES[architecture]), words, seed=0)
    ids = torch.randint(5, 205, (2, 16), generator=torch.Generator().manual_seed(0))
    output = model.base_model(input_ids=ids, use_cache=False, **asked(model))
    loss = router_loss(model, output.router_logits)
    with_it, without = (model(input_ids=ids, labels=ids, use_cache=False, output_router_logits=flag).loss for flag in (True, False))
    torch.testing.assert_close(loss, with_it - without, rtol=1e-3, atol=1e-6)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "gate.weight" in name)


def test_padding_does_not_count_and_dense_blocks_are_passed_over():
    logits = [torch.randn(12, 4), torch.randn(12, 4)]
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
    expected = load_balancing_loss_func(tuple(logits), num_experts=4, top_k=2, attention_mask=mask)
    torch.testing.assert_close(balance([logits[0], None, logits[1]], 2, mask.bool()), expected)


def test_equally_busy_experts_give_the_number_that_reads_a_token_and_one_busy_expert_gives_all():
    even = 50 * torch.eye(4).repeat(3, 1) + 40 * torch.eye(4).roll(1, 1).repeat(3, 1)
    assert balance([even], 2).item() == pytest.approx(2, abs=1e-3)
    one = torch.tensor([[50.0, 0, 0, 0]]).repeat(8, 1)
    assert balance([one], 1).item() == pytest.approx(4)


def test_a_dense_model_is_asked_for_nothing(words, config):
    assert asked(build(config, words, seed=0)) == {}
