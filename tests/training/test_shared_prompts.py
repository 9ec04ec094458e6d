"""A prompt that several answers share is computed once, and nothing but that changes."""

import pytest
import torch

from components.models.build import build, load_tokenizer
from components.schema.training import ModelConfig
from components.training import fast, rollouts
from components.training.rollouts import answer_logprobs, lay_out_rollout
from components.training.shared_prompts import share

PROMPTS = [[7, 8, 9, 10, 11, 12], [13, 14, 15], [16, 17, 18, 19]]


def roll(prompts=PROMPTS, copies=4, seed=0):
    lengths = torch.randint(1, 6, (len(prompts) * copies,), generator=torch.Generator().manual_seed(seed)).tolist()
    asked = [prompt for prompt in prompts for _ in range(copies)]
    return lay_out_rollout(asked, [[20 + (k + j) % 9 for j in range(n)] for k, n in enumerate(lengths)], pad_id=0, end_id=4, device=torch.device("cpu"))


def make(tokenizer_folder, **changes):
    model = build(ModelConfig(**{"hidden_size": 32, "layers": 2, "heads": 4, "context_tokens": 32, **changes}), load_tokenizer(tokenizer_folder), seed=0).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    fast.prepare(model)
    return model


def looked_at(model, rollout):
    """Log-probabilities, entropies and the gradients of a weighted sum; and how many tokens the model read."""
    read = []
    hook = model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].numel()))
    model.zero_grad()
    logp, entropy = answer_logprobs(model, rollout.ids, rollout.counts, 0.8)
    (logp * torch.linspace(-1, 2, logp.numel()).view_as(logp)).sum().backward()
    hook.remove()
    return logp.detach(), entropy, [p.grad.clone() for p in model.parameters()], read[-1]


@pytest.mark.parametrize("prompts", [PROMPTS, [PROMPTS[0], PROMPTS[0][::-1]]], ids=["of several lengths", "of one length"])
@pytest.mark.parametrize("changes", [{}, {"architecture": "qwen2", "extra": {"num_key_value_heads": 2}}, {"architecture": "mistral"}], ids=str)
def test_shared_prompts_give_the_numbers_and_gradients_of_whole_rows_from_fewer_tokens(tokenizer_folder, changes, prompts, monkeypatch):
    model, rollout = make(tokenizer_folder, **changes), roll(prompts)
    shared = looked_at(model, rollout)
    monkeypatch.setattr(rollouts, "share", lambda ids, counts: None)
    whole = looked_at(model, rollout)
    torch.testing.assert_close(shared[:2], whole[:2], rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(shared[2], whole[2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    assert shared[3] < 0.8 * whole[3]


def test_rows_may_stand_in_any_order(tokenizer_folder):
    model, rollout = make(tokenizer_folder), roll()
    order = torch.randperm(len(rollout.ids), generator=torch.Generator().manual_seed(1))
    straight, _ = answer_logprobs(model, rollout.ids, rollout.counts, 1.0)
    mixed, _ = answer_logprobs(model, rollout.ids[order], rollout.counts[order], 1.0)
    torch.testing.assert_close(mixed, straight[order], rtol=1e-5, atol=1e-6)


def test_where_every_prompt_is_another_nothing_is_shared():
    rollout = roll([[k, k + 1, k + 2] for k in range(6, 18)], copies=1)
    assert share(rollout.ids, rollout.counts) is None


@pytest.mark.parametrize("reason", ["not prepared", "adapters", "a window", "another architecture"])
def test_a_model_whose_blocks_are_not_ours_reads_whole_rows(tokenizer_folder, reason):
    if reason == "not prepared":
        model = build(ModelConfig(hidden_size=32, layers=2, heads=4, context_tokens=32), load_tokenizer(tokenizer_folder), seed=0)
    else:
        model = make(tokenizer_folder, **{"another architecture": {"architecture": "gpt2"}, "a window": {"architecture": "mistral", "extra": {"sliding_window": 8}}}.get(reason, {}))
    if reason == "adapters":
        model.model.layers[1].self_attn.q_proj.register_forward_hook(lambda module, inputs, output: output)
    assert not fast.can_share(model, 24)


def test_a_prepared_model_may_be_given_shared_prompts(tokenizer_folder):
    assert fast.can_share(make(tokenizer_folder), 24)
