"""Which token is chosen: held against torch's own arithmetic and against counts."""

import numpy as np
import pytest
import torch

from components.serving.sampling import Sampling, chances, odds, pick


def shares(logits, how):
    """The distribution that `pick` draws from, by asking it at many evenly spread numbers."""
    grid = (np.arange(20_000) + 0.5) / 20_000
    rows = logits.repeat(len(grid), 1)
    found = np.bincount(pick(rows, [how] * len(grid), grid.tolist()), minlength=logits.shape[1])
    return torch.tensor(found / len(grid))


LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0]])


def test_without_heat_the_likeliest_token_is_taken():
    assert pick(torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]]), [Sampling(temperature=0)] * 2, [0.9, 0.9]) == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_come_as_often_as_their_probability_at_that_temperature(temperature):
    torch.testing.assert_close(shares(LOGITS, Sampling(temperature)), (LOGITS[0] / temperature).softmax(-1).double(), atol=2e-4, rtol=0)


def test_top_k_leaves_the_likeliest_and_top_p_the_fewest_that_reach_it():
    whole = LOGITS[0].softmax(-1).double()  # 0.56, 0.21, 0.13, 0.08, 0.03
    two = whole[:2] / whole[:2].sum()
    torch.testing.assert_close(shares(LOGITS, Sampling(top_k=2))[:2], two, atol=2e-4, rtol=0)
    torch.testing.assert_close(shares(LOGITS, Sampling(top_p=0.7))[:2], two, atol=2e-4, rtol=0)  # 0.56 alone is not enough
    assert shares(LOGITS, Sampling(top_p=0.01))[0] == 1.0  # one always stays


def test_a_row_is_chosen_as_if_it_were_alone():
    logits, generator = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)), chances(3, 0)
    how = [Sampling(0), Sampling(1.0), Sampling(0.7, top_p=0.5), Sampling(1.3, top_k=3), Sampling(1.0, top_p=0.9, top_k=10), Sampling(2.0)]
    uniform = [float(generator.random()) for _ in how]
    assert pick(logits, how, uniform) == [pick(logits[i : i + 1], how[i : i + 1], uniform[i : i + 1])[0] for i in range(6)]


def test_chances_follow_from_the_seed_and_the_choice():
    first = [chances(7, 0).random(3).tolist() for _ in range(2)]
    assert first[0] == first[1] != chances(7, 1).random(3).tolist() and first[0] != chances(8, 0).random(3).tolist()
    assert 0 <= chances(-1, 0).random() < 1  # OpenAI's seeds may be negative


def test_what_is_told_of_a_token_is_its_log_probability_at_temperature_one():
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    told = odds(logits, [4, 5, 6], [Sampling(0.1, logprobs=2), Sampling(), Sampling(logprobs=0)])
    assert told[1] is None and told[2].top == ()
    expected = logits[0].log_softmax(-1)
    assert told[0].logprob == pytest.approx(float(expected[4]), abs=1e-6)
    assert told[0].top == tuple((int(i), pytest.approx(float(expected[i]), abs=1e-6)) for i in expected.argsort(descending=True)[:2])
