"""The leaf maths against slow loops and examples worked by hand."""

import math

import numpy as np
import pytest
import torch

from components.training.losses import (
    gae,
    group_advantages,
    kl_k1,
    kl_k3,
    leave_one_out_advantages,
    masked_mean,
    policy_loss,
    token_rewards,
    token_weights,
    value_loss,
    weighted_sum,
    whiten,
)


def numbers(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


COUNTS = torch.tensor([[False, True, True, True, False], [False, False, True, True, True], [False, True, False, False, False]])


def test_a_masked_mean_reads_only_what_counts():
    x = torch.tensor([[1.0, math.nan], [math.inf, 4.0]])
    assert masked_mean(x, torch.tensor([[True, False], [False, True]])) == 2.5


def test_both_kl_estimators_average_to_the_true_kl_and_k3_is_never_negative():
    p, q = torch.log_softmax(numbers(7), 0), torch.log_softmax(numbers(7, seed=1), 0)
    true = (p.exp() * (p - q)).sum()
    for estimator in (kl_k1, kl_k3):
        torch.testing.assert_close((p.exp() * estimator(p, q)).sum(), true)
    assert (kl_k3(p, q) >= 0).all() and (kl_k1(p, q) < 0).any()


def test_kl_k3_by_hand():
    assert kl_k3(torch.tensor(-1.0), torch.tensor(-2.0)).item() == pytest.approx(math.exp(-1) - 1 + 1)


def test_whitening_removes_the_mean_and_scales_to_one_over_what_counts():
    x = numbers(3, 5) * 3 + 10
    white = whiten(x, COUNTS)
    seen = x[COUNTS].numpy()
    np.testing.assert_allclose(white[COUNTS].numpy(), (seen - seen.mean()) / seen.std(), rtol=1e-6)
    assert white[COUNTS].mean().abs() < 1e-9
    assert (white[~COUNTS] == 0).all()


@pytest.mark.parametrize("each", ["answer", "batch", "constant"])
def test_weights_are_the_mean_that_a_loop_takes(each):
    x = numbers(3, 5)
    lengths, total = [3, 3, 1], 0.0
    for b in range(3):
        answer = float(x[b, COUNTS[b]].sum())
        total += {"answer": answer / lengths[b] / 3, "batch": answer / 7, "constant": answer / 10 / 3}[each]
    weights = token_weights(COUNTS, each, longest=10)
    assert weighted_sum(x, weights).item() == pytest.approx(total, rel=1e-6)
    assert (weights[~COUNTS] == 0).all()


def test_weights_by_hand_a_token_of_a_long_answer_counts_less_only_in_the_mean_by_answer():
    counts = torch.tensor([[True, True, True, True], [True, False, False, False]])
    assert token_weights(counts, "answer")[:, 0].tolist() == pytest.approx([1 / 8, 1 / 2])
    assert token_weights(counts, "batch")[:, 0].tolist() == pytest.approx([1 / 5, 1 / 5])
    assert token_weights(counts, "constant", longest=4)[:, 0].tolist() == pytest.approx([1 / 8, 1 / 8])


def test_a_weighted_sum_reads_only_what_has_weight_and_so_does_its_gradient():
    x = torch.tensor([[1.0, math.nan], [math.inf, 4.0]], requires_grad=True)
    weighted_sum(x, torch.tensor([[0.5, 0.0], [0.0, 2.0]])).backward()
    assert x.grad.tolist() == [[0.5, 0.0], [0.0, 2.0]]


# ---------------------------------------------------------------- advantages


def test_token_rewards_by_hand():
    counts = torch.tensor([[False, True, True, False], [False, False, False, True]])
    kl = torch.tensor([[9.0, 0.5, -0.25, 9.0], [9.0, 9.0, 9.0, 1.0]])
    rewards = token_rewards(torch.tensor([2.0, -1.0]), kl, counts, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[0.0, -0.05, 2.025, 0.0], [0.0, 0.0, 0.0, -1.1]]))


def test_group_advantages_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 5.0, 5.0])
    plain = group_advantages(rewards, 4, normalise_by_std=False)
    assert plain.tolist() == [0.5, -0.5, -0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    scaled = group_advantages(rewards, 4, normalise_by_std=True)
    assert scaled.tolist() == pytest.approx([math.sqrt(3) / 2, -math.sqrt(3) / 2, -math.sqrt(3) / 2, math.sqrt(3) / 2, 0, 0, 0, 0], rel=1e-3)  # s = 1 / sqrt(3)


def test_group_advantages_equal_numpy_and_know_nothing_of_other_groups():
    rewards = numbers(12)
    expected = np.concatenate([(g - g.mean()) / (g.std(ddof=1) + 1e-4) for g in rewards.numpy().reshape(3, 4)])
    np.testing.assert_allclose(group_advantages(rewards, 4, True).numpy(), expected, rtol=1e-9)
    other = rewards.clone()
    other[4:] += 100
    torch.testing.assert_close(group_advantages(other, 4, True)[:4], group_advantages(rewards, 4, True)[:4])


def test_a_group_that_is_alike_but_for_rounding_teaches_nothing():
    rewards = torch.tensor([0.1 + 0.2, 0.3, 0.30000001, 0.3])
    assert group_advantages(rewards, 4, normalise_by_std=True).abs().max() < 1e-3


def test_leaving_one_out_equals_a_slow_loop_and_is_the_group_mean_on_another_scale():
    rewards = numbers(8)
    expected = []
    for g in range(2):
        group = rewards[4 * g : 4 * g + 4].tolist()
        expected += [r - sum(group[:i] + group[i + 1 :]) / 3 for i, r in enumerate(group)]
    advantages = leave_one_out_advantages(rewards, 4)
    np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-9)
    torch.testing.assert_close(advantages, group_advantages(rewards, 4, normalise_by_std=False) * 4 / 3)


def gae_by_definition(rewards, values, gamma, lam):
    """Sum over all later surprises, each discounted by (gamma lambda)^distance; one answer, no masks."""
    T = len(rewards)
    later = [values[t + 1] if t + 1 < T else 0.0 for t in range(T)]
    surprise = [rewards[t] + gamma * later[t] - values[t] for t in range(T)]
    return [sum((gamma * lam) ** (k - t) * surprise[k] for k in range(t, T)) for t in range(T)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_gae_equals_its_definition_on_each_answer_alone(gamma, lam):
    rewards, values = numbers(3, 5), numbers(3, 5, seed=1)
    advantages, returns = gae(rewards, values, COUNTS, gamma, lam)
    for b in range(3):
        here = COUNTS[b]
        expected = gae_by_definition(rewards[b, here].tolist(), values[b, here].tolist(), gamma, lam)
        np.testing.assert_allclose(advantages[b, here].numpy(), expected, rtol=1e-9)
        np.testing.assert_allclose(returns[b, here].numpy(), np.add(expected, values[b, here]), rtol=1e-9)
        assert (advantages[b, ~here] == 0).all() and (returns[b, ~here] == 0).all()


def test_gae_by_hand():
    advantages, returns = gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]]), torch.tensor([[True, True]]), 1.0, 0.5)
    # last: 1 - 0.25 = 0.75; first: 0 + 0.25 - 0.5 + 0.5 * 0.75 = 0.125
    torch.testing.assert_close(advantages, torch.tensor([[0.125, 0.75]]))
    torch.testing.assert_close(returns, torch.tensor([[0.625, 1.0]]))


def policy_loss_by_loop(logp, old, advantages, counts, clip):
    total, clipped, n = 0.0, 0, 0
    for b in range(logp.shape[0]):
        for t in range(logp.shape[1]):
            if counts[b, t]:
                ratio, a = math.exp(logp[b, t] - old[b, t]), float(advantages[b, t])
                gain = min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
                total, clipped, n = total - gain, clipped + (gain < ratio * a), n + 1
    return total / n, clipped / n


def test_the_clipped_policy_loss_equals_a_slow_loop():
    logp, old, advantages = numbers(3, 5), numbers(3, 5, seed=1), numbers(3, 5, seed=2)
    loss, clipped = policy_loss(logp, old, advantages, token_weights(COUNTS, "batch"), 0.2)
    expected, share = policy_loss_by_loop(logp, old, advantages, COUNTS, 0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-6)  # weights are single precision
    assert clipped.item() == pytest.approx(share)
    assert 0 < share < 1


def test_the_policy_loss_by_hand():
    one = torch.tensor([[1.0]])
    loss = lambda ratio, advantage: policy_loss(torch.tensor([[math.log(ratio)]]), torch.zeros(1, 1), torch.tensor([[advantage]]), one, 0.2)[0].item()  # noqa: E731
    assert loss(1.5, 2.0) == pytest.approx(-2.4)  # a good token gains no more beyond 1.2
    assert loss(0.5, 2.0) == pytest.approx(-1.0)  # but its fall counts in full
    assert loss(0.5, -2.0) == pytest.approx(1.6)  # a bad one gains no more below 0.8
    assert loss(1.5, -2.0) == pytest.approx(3.0)


def test_at_the_sampling_policy_the_gradient_is_the_policy_gradient():
    old, advantages = numbers(3, 5), numbers(3, 5, seed=1)
    logp = old.clone().requires_grad_()
    policy_loss(logp, old, advantages, token_weights(COUNTS, "batch"), 0.2)[0].backward()
    torch.testing.assert_close(logp.grad, torch.where(COUNTS, -advantages / COUNTS.sum(), 0.0))


def test_the_value_loss_equals_a_slow_loop():
    values, old, returns = numbers(3, 5), numbers(3, 5, seed=1), numbers(3, 5, seed=2)
    errors = []
    for b, t in COUNTS.nonzero().tolist():
        v, o, r = (float(x[b, t]) for x in (values, old, returns))
        clipped = o + min(max(v - o, -0.2), 0.2)
        errors.append(max((v - r) ** 2, (clipped - r) ** 2))
    assert value_loss(values, old, returns, token_weights(COUNTS, "batch"), 0.2).item() == pytest.approx(0.5 * np.mean(errors), rel=1e-6)
