"""GRPO and RLOO: one on-policy step is the policy gradient, a rollout's parts add up, and the best policy, where it is known, is found."""

import pytest
import torch

from components.schema.posttraining import GRPOConfig
from components.schema.recipe import Resources
from components.training.grpo import GRPO
from components.training.losses import group_advantages, leave_one_out_advantages
from components.training.online import align
from components.training.rollouts import answer_logprobs, lay_out_rollout, sample
from components.training.trainer import Context

from . import toys

CPU = torch.device("cpu")
PLAN = {
    "method": "grpo",
    "iterations": 1,
    "rollout_size": 16,
    "minibatch_size": 16,
    "epochs": 1,
    "group_size": 8,
    "max_new_tokens": 4,
    "kl_coef": 0.0,
    "unfinished_penalty": 0.0,
    "warmup_steps": 0,
}


def context(seed=0, **resources) -> Context:
    return Context(seed=seed, resources=Resources(accelerator="cpu", **resources))


def module_of(ground, seed=0, micro=None, **changes) -> GRPO:
    return GRPO(ground, GRPOConfig(**{**PLAN, **changes}), context(seed, micro_batch_size=micro))


def repeats(prompt, answer) -> float:
    """Share of four words that are the prompt's last."""
    return sum(word == prompt[-1] for word in answer) / 4


def rollout_of(module, groups=2, seed=3):
    asked = [question for question in module.ground.questions[:groups] for _ in range(module.group_size)]
    return sample(
        module.policy, [q.ids for q in asked], stop_ids=module.ground.stops, max_new_tokens=module.config.max_new_tokens, temperature=1.0, seed=seed
    ), asked


def assessed(module):
    rollout, asked = rollout_of(module)
    return module.assess(rollout, module.ground.rewards(rollout, asked), asked)


PROMPTS = [[5, 2], [7, 3]]


@pytest.mark.parametrize("changes", [{}, {"epochs": 2}, {"method": "rloo"}, {"length_normalisation": "batch"}, {"length_normalisation": "constant"}])
def test_one_on_policy_step_is_the_policy_gradient_of_a_slow_loop(changes):
    module = module_of(toys.ground(repeats, PROMPTS), **changes)
    experience, _ = assessed(module)
    module.zero_grad()
    seen = module.step_over(experience, list(range(16)), lambda loss: loss.backward())
    got = [p.grad.clone() for p in module.parameters()]
    rollout, policy = experience.rollout, module.policy
    rewards = torch.tensor([repeats(p, a) for p, a in zip(rollout.prompts, rollout.answers, strict=True)])
    advantages = leave_one_out_advantages(rewards, 8) if changes.get("method") == "rloo" else group_advantages(rewards, 8, True)
    assert advantages.abs().max() > 0.1
    tokens = sum(map(len, rollout.answers))
    total = 0.0
    for b, (prompt, answer) in enumerate(zip(rollout.prompts, rollout.answers, strict=True)):
        logits = policy(torch.tensor([prompt + answer]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        logp = torch.distributions.Categorical(logits=logits).log_prob(torch.tensor(answer)).sum()
        size = {"answer": 16 * len(answer), "batch": tokens, "constant": 16 * 4}[module.config.length_normalisation]
        total = total - advantages[b] * logp / size
    module.zero_grad()
    total.backward()
    for a, b in zip(got, [p.grad for p in module.parameters()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert seen["clipped"] == 0


@pytest.mark.parametrize("how", ["answer", "batch", "constant"])
def test_parts_of_a_minibatch_add_up_to_its_gradient_and_its_numbers(how):
    results = []
    for micro in (None, 5, 1):
        module = module_of(toys.ground(repeats, PROMPTS), micro=micro, kl_coef=0.1, epochs=2, length_normalisation=how)
        experience, _ = assessed(module)
        module.zero_grad()
        seen = module.step_over(experience, list(range(16)), lambda loss: loss.backward())
        results.append((seen, [p.grad.clone() for p in module.parameters()]))
    for seen, gradients in results[1:]:
        assert seen == pytest.approx(results[0][0], rel=1e-4, abs=1e-6)
        for a, b in zip(gradients, results[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_the_order_of_answers_and_more_padding_change_nothing():
    module = module_of(toys.ground(repeats, PROMPTS), epochs=2)
    experience, _ = assessed(module)
    rows = list(range(16))
    one = module.step_over(experience, rows, lambda loss: None)["loss"]
    other = module.step_over(experience, rows[::-1], lambda loss: None)["loss"]
    rollout = experience.rollout
    wide = lay_out_rollout([*rollout.prompts, [2] * 10], [*rollout.answers, [3] * 8], toys.PAD, toys.END, CPU)
    a, _ = answer_logprobs(module.policy, rollout.ids, rollout.counts, 1.0)
    b, _ = answer_logprobs(module.policy, wide.ids, wide.counts, 1.0)
    assert one == pytest.approx(other, abs=1e-6)
    torch.testing.assert_close(a, b[:16, : a.shape[1]], rtol=1e-4, atol=1e-5)


def test_an_unfinished_answer_pays_its_penalty_and_the_reward_that_is_shown_does_not():
    module = module_of(toys.ground(lambda *_: 0.0, PROMPTS), unfinished_penalty=2.0, method="rloo", group_size=2, rollout_size=2, minibatch_size=2)
    rollout = lay_out_rollout([[5, 2], [5, 2]], [[3, toys.END], [3, 3]], toys.PAD, toys.END, CPU)
    asked = [module.ground.questions[0]] * 2
    experience, seen = module.assess(rollout, module.ground.rewards(rollout, asked), asked)
    assert experience.advantages.tolist() == [2.0, -2.0]
    assert seen["reward"] == 0


def test_groups_whose_answers_are_alike_are_counted_and_teach_nothing():
    module = module_of(toys.ground(lambda prompt, answer: float(prompt == PROMPTS[0] and answer[0] > 4), PROMPTS))
    experience, seen = assessed(module)
    assert seen["groups_alike"] == 0.5
    assert (experience.advantages[8:] == 0).all() and (experience.advantages[:8] != 0).any()


def test_kl_is_measured_on_a_few_answers_where_nothing_follows_from_it_and_on_all_where_a_band_does():
    ground = toys.ground(repeats, PROMPTS)
    for parameter in ground.policy.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    few, whole = (assessed(module_of(ground, **changes)) for changes in ({}, {"bands": {"kl_max": 100.0}}))
    rollout = few[0].rollout
    p, _ = answer_logprobs(ground.policy, rollout.ids, rollout.counts, 1.0)
    q, _ = answer_logprobs(ground.reference, rollout.ids, rollout.counts, 1.0)
    kl = (p - q).sum(1)
    assert few[1]["kl"] == pytest.approx(kl[::8].mean().item(), rel=1e-4)
    assert whole[1]["kl"] == pytest.approx(kl.mean().item(), rel=1e-4)


# ---------------------------------------------------------------- a known optimum


def one_word(prompt, answer) -> float:
    """The word decides: the higher, the better."""
    return answer[0] / 10


BANDIT = {
    "rollout_size": 128,
    "minibatch_size": 128,
    "group_size": 64,
    "max_new_tokens": 1,
    "learning_rate": 5e-3,
    "iterations": 150,
    "temperature": 1.0,
    "kl_coef": 0.2,
    "checkpoint_every_iterations": 1000,
}


def tilted(reference, rewards, price):
    """The policy that maximises E[reward] - price * KL(policy || reference)."""
    weights = reference * (rewards / price).exp()
    return weights / weights.sum()


def turned(reference, rewards, price):
    """The policy that maximises E[reward] - price * KL(reference || policy): price * reference / (level - rewards), with the level at which it sums to one."""
    low, high = float(rewards.max()), float(rewards.max()) + price
    for _ in range(100):
        level = (low + high) / 2
        low, high = (level, high) if (price * reference / (level - rewards)).sum() > 1 else (low, level)
    return price * reference / (level - rewards)


def distance(p, q) -> float:
    """Total variation."""
    return 0.5 * (p - q).abs().sum().item()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("method", "best"), [("rloo", tilted), ("grpo", turned)])
def test_on_one_word_answers_the_best_policy_in_closed_form_is_found(method, best, seed, tmp_path):
    ground = toys.ground(one_word, [[5, 2]], seed=seed)
    prompt, rewards = [5, 2], torch.arange(toys.WORDS).double() / 10
    before = toys.first_word(ground.reference, prompt)
    aim = best(before, rewards, 0.2)
    module = module_of(ground, seed, **{**BANDIT, "method": method, "normalise_by_std": False})
    align(module, tmp_path, context(seed))
    after = toys.first_word(ground.policy, prompt)
    assert distance(before, aim) > 0.2
    assert distance(after, aim) < 0.06
    other = tilted if best is turned else turned
    assert distance(after, aim) < distance(after, other(before, rewards, 0.2))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "grpo"},
        {"method": "grpo", "normalise_by_std": False, "length_normalisation": "constant"},
        {"method": "rloo", "epochs": 2, "minibatch_size": 32},
    ],
)
def test_answers_of_several_words_reach_the_highest_reward(changes, seed, tmp_path):
    ground = toys.ground(repeats, [[a, b] for a in (5, 6) for b in (2, 3)], seed=seed)
    plan = {
        "rollout_size": 64,
        "minibatch_size": 64,
        "group_size": 16,
        "iterations": 120,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
        "checkpoint_every_iterations": 1000,
    }
    figures = align(module_of(ground, seed, **{**plan, **changes}), tmp_path, context(seed)).figures
    assert figures["reward_before"] < 0.3
    assert figures["reward_after"] > 0.9
