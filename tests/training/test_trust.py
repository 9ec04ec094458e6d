"""What makes a reward suspect is said once it is there, and nothing is said of a run that goes well."""

import numpy as np
import pytest
import torch

from components.training.trust import WINDOW, correlation, repetition, suspicions


def run(n=20, noise=0.02, seed=0, **courses):
    """Readings of n iterations, each number going in a line between two values, with noise."""
    rng = np.random.default_rng(seed)
    plan = {
        "reward": (0.0, 1.0),
        "kl": (0.0, 2.0),
        "length": (20.0, 21.0),
        "repetition": (0.05, 0.05),
        "reward_by_length": (0.1, 0.1),
        "judge": (0.0, 0.8),
        **courses,
    }
    lines = {name: np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(points)), points) + noise * rng.normal(size=n) for name, points in plan.items()}
    return [{"iteration": i + 1, **{name: float(line[i]) for name, line in lines.items()}} for i in range(n)]


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_goes_well_is_not_suspected(seed):
    assert suspicions(run(seed=seed)) == {}


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_not_suspected(seed):
    still = {name: (0.5, 0.5) for name in ("reward", "kl", "judge", "reward_by_length", "repetition")}
    assert suspicions(run(noise=0.3, seed=seed, **still)) == {}


def test_a_reward_that_rises_while_the_judge_falls_is_suspected_and_the_judges_best_is_named():
    readings = run(noise=0.001, judge=(0.0, 0.5, -1.0), kl=(0.0, 4.0))
    found = suspicions(readings)
    assert list(found) == ["judge"]
    best = max(range(20), key=lambda i: readings[i]["judge"])
    assert f"highest in iteration {best + 1}, at a KL of {readings[best]['kl']:.2f}" in found["judge"]
    assert "judge" not in suspicions([{k: v for k, v in reading.items() if k != "judge"} for reading in readings])


def test_a_judge_that_falls_with_the_reward_is_no_hacking():
    assert "judge" not in suspicions(run(reward=(1.0, 0.0), judge=(0.0, -1.0)))


@pytest.mark.parametrize(
    ("length", "follows", "is_suspect"),
    [((20.0, 40.0), 0.8, True), ((20.0, 40.0), 0.1, False), ((40.0, 20.0), -0.8, True), ((40.0, 20.0), 0.8, False), ((20.0, 22.0), 0.8, False)],
)
def test_length_is_suspected_where_answers_change_and_the_reward_follows(length, follows, is_suspect):
    found = suspicions(run(length=length, reward_by_length=(follows, follows)))
    assert ("length" in found) == is_suspect


def test_repetition_that_grows_is_suspected_and_one_that_was_there_is_not():
    assert "repetition" in suspicions(run(repetition=(0.05, 0.4)))
    assert "repetition" not in suspicions(run(repetition=(0.4, 0.4)))


def test_moving_on_while_the_reward_falls_is_suspected():
    assert "kl" in suspicions(run(n=40, reward=(0.0, 1.0, 0.2), kl=(0.0, 5.0, 10.0), judge=(0.0, 0.0)))
    assert "kl" not in suspicions(run(n=40, reward=(0.0, 0.8, 1.0), kl=(0.0, 5.0, 10.0)))


def test_a_few_readings_say_nothing():
    assert suspicions(run(n=2 * WINDOW - 1, judge=(0.0, -5.0))) == {}
    assert suspicions(run(n=2 * WINDOW, judge=(0.0, -5.0))) != {}


def test_repetition_by_hand():
    shares = repetition([[1, 2, 3, 4, 5], [7] * 6, [1, 2], [1, 2, 1, 2, 1, 2]])
    assert shares.tolist() == pytest.approx([0.0, 2 / 3, 0.0, 1 / 3])


def test_correlation_equals_numpy_and_is_nought_where_nothing_varies():
    x, y = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    assert correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-5)
    assert correlation(x, torch.ones(30)) == 0
