"""Answers are the same whether asked alone or in a batch, and end where they should."""

import pytest
import torch

from components.models.build import build
from components.models.generate import generate, pad_left, until_stop

PROMPTS = [[5, 6, 7], [8, 9], [20, 21, 22, 23, 24, 25], [30]]
HOW = {"stop_ids": [4, 0], "pad_id": 0, "max_new_tokens": 8}


@pytest.fixture
def model(config, words):
    model = build(config, words, seed=0)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)  # logits far enough apart that float noise does not turn an argmax
    return model


@torch.no_grad()
def greedy_by_hand(model, prompt, steps, stops):
    """One token at a time, no cache, no padding."""
    model.eval()
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


def test_greedy_in_a_padded_batch_with_cache_equals_a_loop_without_either(model):
    expected = [greedy_by_hand(model, p, 8, [4, 0]) for p in PROMPTS]
    assert generate(model, PROMPTS, **HOW) == expected
    assert generate(model, PROMPTS, **HOW, batch_size=2) == expected


@pytest.mark.parametrize("which", [0, 1])
def test_an_answer_ends_at_either_stop_token_and_keeps_it(model, which):
    free = greedy_by_hand(model, PROMPTS[0], 8, [])
    stops = [299, 298]
    stops[which] = free[2]
    answer = generate(model, PROMPTS[:1], stop_ids=stops, pad_id=0, max_new_tokens=8)[0]
    assert answer == free[: free.index(free[2]) + 1]


def test_the_seed_decides_what_is_sampled_and_the_global_generator_is_left_alone(model):
    torch.manual_seed(5)
    first = generate(model, PROMPTS, **HOW, temperature=1.0, seed=1)
    state = torch.get_rng_state()
    assert generate(model, PROMPTS, **HOW, temperature=1.0, seed=1) == first
    assert generate(model, PROMPTS, **HOW, temperature=1.0, seed=2) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_sampling_follows_the_models_whole_distribution_at_its_temperature(config, words):
    model = build(config, words, seed=1).eval()
    with torch.no_grad():
        expected = (model(torch.tensor([[5, 6]])).logits[0, -1] / 0.5).softmax(-1)
    drawn = torch.tensor(generate(model, [[5, 6]] * 4000, stop_ids=[4, 0], pad_id=0, max_new_tokens=1, temperature=0.5, batch_size=4000)).flatten()
    got = torch.bincount(drawn, minlength=len(words)) / 4000
    assert (got > 0).sum() > 200  # no top-k, no top-p
    assert (got - expected).abs().max() < 5 * (expected.max() / 4000).sqrt()


def test_generation_gives_the_model_back_in_the_mode_it_had(model):
    generate(model.train(), PROMPTS, **HOW)
    assert model.training


def test_padding_goes_left_and_the_mask_is_true_where_a_token_is_real():
    ids, is_real = pad_left([[1, 2, 3], [9]], pad_id=7)
    assert ids.tolist() == [[1, 2, 3], [7, 7, 9]]
    assert is_real.tolist() == [[True, True, True], [False, False, True]]


def test_what_follows_the_first_stop_token_is_dropped():
    assert until_stop([8, 4, 9, 4], [4, 0]) == [8, 4]
    assert until_stop([8, 9], [4, 0]) == [8, 9]
