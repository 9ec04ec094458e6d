"""Each loss equals what plain Python makes of its paper's formula, and a case worked by hand."""

import math
from itertools import permutations

import pytest
import torch

from components.training.preference_losses import (
    bradley_terry,
    centring,
    cost_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    log_odds,
    orpo_loss,
    plackett_luce,
)

CHOSEN, REJECTED = [1.3, -0.4, 2.0, -3.0], [0.2, -0.4, 5.0, -3.5]


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# ---------------------------------------------------------------- scalar models


def test_bradley_terry_by_hand():
    assert bradley_terry(double([0.0]), double([0.0])).item() == pytest.approx(math.log(2))
    assert bradley_terry(double([2.0]), double([-1.0])).item() == pytest.approx(math.log(1 + math.exp(-3)))
    assert bradley_terry(torch.tensor([-100.0]), torch.tensor([100.0])).item() == pytest.approx(200)  # no overflow


def test_bradley_terry_is_cross_entropy_over_the_two_scores():
    expected = torch.nn.functional.cross_entropy(torch.stack([double(CHOSEN), double(REJECTED)], 1), torch.zeros(4, dtype=torch.long), reduction="none")
    torch.testing.assert_close(bradley_terry(double(CHOSEN), double(REJECTED)), expected)


def test_a_margin_asks_for_a_lead_and_may_differ_from_pair_to_pair():
    got = bradley_terry(double([3.0, 3.0]), double([1.0, 1.0]), double([2.0, 0.5]))
    assert got.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-1.5))])


def likelihood(scores, ranks):
    """Draw the best, then the next best of the others, and so on."""
    order = sorted((rank, score) for rank, score in zip(ranks, scores, strict=True) if rank)
    found = 1.0
    for place, (_, score) in enumerate(order):
        found *= math.exp(score) / sum(math.exp(other) for _, other in order[place:])
    return found


def test_plackett_luce_equals_drawing_one_answer_after_the_other():
    scores = [[0.3, -1.0, 2.0, 0.5], [1.0, 4.0, -2.0, 9.0], [0.0, 0.0, 0.0, 0.0]]
    ranks = [[2, 4, 1, 3], [3, 1, 2, 0], [1, 2, 0, 0]]
    got = plackett_luce(double(scores), torch.tensor(ranks))
    assert got.tolist() == pytest.approx([-math.log(likelihood(s, r)) for s, r in zip(scores, ranks, strict=True)])
    assert got[2].item() == pytest.approx(math.log(2))


def test_the_likelihoods_of_all_orders_sum_to_one():
    scores = double([[0.3, -1.0, 2.0, 0.5]])
    total = sum(math.exp(-plackett_luce(scores, torch.tensor([order])).item()) for order in permutations((1, 2, 3, 4)))
    assert total == pytest.approx(1)


def test_a_ranking_of_two_is_a_pair():
    both = torch.stack([double(CHOSEN), double(REJECTED)], 1)
    torch.testing.assert_close(plackett_luce(both, torch.tensor([[1, 2]] * 4)), bradley_terry(double(CHOSEN), double(REJECTED)))
    torch.testing.assert_close(plackett_luce(both.flip(1), torch.tensor([[2, 1]] * 4)), bradley_terry(double(CHOSEN), double(REJECTED)))


def test_answers_of_equal_rank_do_not_compete():
    scores = double([[1.0, 3.0, 0.0]]).requires_grad_()
    got = plackett_luce(scores, torch.tensor([[1, 1, 2]]))
    assert got.item() == pytest.approx(-math.log(sigmoid(1.0)) - math.log(sigmoid(3.0)))
    got.backward()
    assert (scores.grad[0, :2] < 0).all() and scores.grad[0, 2] > 0, "both are pushed up, the worse one down"


def test_answers_that_are_not_there_neither_count_nor_get_a_gradient():
    scores = torch.tensor([[1.0, 2.0, math.nan]], requires_grad=True)
    loss = plackett_luce(torch.where(torch.tensor([[True, True, False]]), scores, 0.0), torch.tensor([[2, 1, 0]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1))) and scores.grad[0, 2] == 0


def test_centring_of_a_pair_is_the_square_of_its_sum():
    everywhere = torch.ones(4, 2, dtype=torch.bool)
    got = centring(torch.stack([double(CHOSEN), double(REJECTED)], 1), everywhere)
    assert got.tolist() == pytest.approx([(c + r) ** 2 for c, r in zip(CHOSEN, REJECTED, strict=True)])
    assert centring(double([[1.0, 2.0, 100.0]]), torch.tensor([[True, True, False]])).item() == pytest.approx(9)


def test_cost_loss_by_the_papers_formula():
    unsafe_w, unsafe_l = [True, True, False, True], [False, True, False, False]
    got = cost_loss(double(CHOSEN), double(REJECTED), torch.tensor(unsafe_w), torch.tensor(unsafe_l))
    expected = [
        -math.log(sigmoid(w - l)) - math.log(sigmoid(w if uw else -w)) - math.log(sigmoid(l if ul else -l))
        for w, l, uw, ul in zip(CHOSEN, REJECTED, unsafe_w, unsafe_l, strict=True)
    ]
    assert got.tolist() == pytest.approx(expected)
    assert cost_loss(double([0.0]), double([0.0]), torch.tensor([True]), torch.tensor([False])).item() == pytest.approx(3 * math.log(2))


# ---------------------------------------------------------------- direct methods


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_by_the_papers_formula(smoothing):
    got = dpo_loss(double(CHOSEN), double(REJECTED), 0.5, smoothing)
    leads = [0.5 * (c - r) for c, r in zip(CHOSEN, REJECTED, strict=True)]
    assert got.tolist() == pytest.approx([-(1 - smoothing) * math.log(sigmoid(lead)) - smoothing * math.log(sigmoid(-lead)) for lead in leads])
    assert dpo_loss(double([0.0]), double([0.0]), 0.5, smoothing).item() == pytest.approx(math.log(2)), "at the reference"


def test_dpo_raises_the_chosen_and_lowers_the_rejected_answer_by_beta_times_the_chance_of_being_wrong():
    chosen, rejected = double([1.0]).requires_grad_(), double([3.0]).requires_grad_()
    dpo_loss(chosen, rejected, 0.5).backward()
    assert chosen.grad.item() == pytest.approx(-0.5 * sigmoid(1.0))
    assert rejected.grad.item() == pytest.approx(0.5 * sigmoid(1.0))


def test_smoothed_dpo_is_least_where_the_pair_is_believed_as_far_as_it_is_to_be():
    lead = double([0.0]).requires_grad_()
    best = math.log(0.9 / 0.1)
    for at, sign in ((best - 0.1, -1), (best + 0.1, 1)):
        (gradient,) = torch.autograd.grad(dpo_loss(lead + at, double([0.0]), 1.0, 0.1).sum(), lead)
        assert gradient.item() * sign > 0


def test_ipo_by_hand_and_its_lead_has_a_target():
    assert ipo_loss(double([3.0]), double([1.0]), 0.5).item() == pytest.approx(1.0)  # (2 - 1)^2
    assert ipo_loss(double([1.0]), double([0.0]), 0.5).item() == 0
    assert ipo_loss(double([9.0]), double([0.0]), 0.5).item() > ipo_loss(double([2.0]), double([0.0]), 0.5).item(), "more is not better"


def test_kto_by_the_papers_value_function():
    ratios, desirable = double([1.3, -0.4, 2.0, -3.0]), torch.tensor([True, False, False, True])
    got = kto_loss(ratios, desirable, double(0.7), 0.5)
    expected = [1 - sigmoid(0.5 * (r - 0.7)) if d else 1 - sigmoid(0.5 * (0.7 - r)) for r, d in zip(ratios.tolist(), desirable.tolist(), strict=True)]
    assert got.tolist() == pytest.approx(expected)


def test_ktos_reference_point_is_never_negative_and_carries_no_gradient():
    ratios, desirable = double([1.0]), torch.tensor([True])
    assert kto_loss(ratios, desirable, double(-5.0), 0.5).equal(kto_loss(ratios, desirable, double(0.0), 0.5))
    kl = double(1.0).requires_grad_()
    assert not kto_loss(ratios, desirable, kl, 0.5).requires_grad


def test_orpo_by_the_papers_formula():
    chosen, rejected = [-0.2, -1.5, -3.0], [-0.9, -1.5, -0.1]

    def odds(logp):
        return math.exp(logp) / (1 - math.exp(logp))

    got = orpo_loss(double(chosen), double(rejected), 0.3)
    expected = [-c - 0.3 * math.log(sigmoid(math.log(odds(c) / odds(r)))) for c, r in zip(chosen, rejected, strict=True)]
    assert got.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("logp", [-1e-12, -1e-4, -1.0, -60.0, -1e4])
def test_log_odds_are_finite_wherever_a_probability_may_be(logp):
    x = torch.tensor([logp], requires_grad=True)
    log_odds(x).sum().backward()
    assert log_odds(x).isfinite().all() and x.grad.isfinite().all()
    if logp < -50:
        assert log_odds(x).item() == pytest.approx(logp)
