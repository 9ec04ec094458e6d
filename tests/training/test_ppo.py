"""PPO: what it makes of a rollout, that one on-policy step is the policy gradient, and that the best policy is found where it is known."""

import math

import pytest
import torch

from components.models.heads import values
from components.schema.posttraining import PPOConfig, RewardTerm
from components.schema.recipe import Resources
from components.training import fast
from components.training.online import align, prepare
from components.training.ppo import PPO, Critic, KlPrice, RunningScale, critic_for, explained
from components.training.rollouts import answer_logprobs, lay_out_rollout, sample
from components.training.trainer import Context

from . import toys

CPU = torch.device("cpu")
PLAN = {
    "iterations": 1,
    "rollout_size": 8,
    "minibatch_size": 8,
    "epochs": 1,
    "max_new_tokens": 6,
    "warmup_steps": 0,
    "unfinished_penalty": 0.0,
    "checkpoint_every_iterations": 1000,
}
PROMPTS = [[5, 2], [7, 3], [6, 2], [8, 3]]


def context(seed=0, **resources) -> Context:
    return Context(seed=seed, resources=Resources(accelerator="cpu", **resources))


def share(prompt, answer) -> float:
    """Share of four words that are the prompt's last."""
    return sum(word == prompt[-1] for word in answer) / 4


def module_of(ground, seed=0, micro=None, **changes) -> PPO:
    config = PPOConfig(**{**PLAN, **changes})
    names = () if config.value_function == "head" else ("reward", "cost") if config.safety else ("reward",)
    critics = {name: Critic(toys.scalar_model(seed + k)) for k, name in enumerate(names)}
    return PPO(ground, critics, config, context(seed, micro_batch_size=micro))


def assessed(module, rollout=None):
    asked = [module.ground.questions[i % len(module.ground.questions)] for i in range(module.config.rollout_size)]
    rollout = rollout or sample(
        module.policy, [q.ids for q in asked], stop_ids=module.ground.stops, max_new_tokens=module.config.max_new_tokens, temperature=1.0, seed=3
    )
    asked = asked[: len(rollout.answers)]
    return module.assess(rollout, module.ground.rewards(rollout, asked), asked)


def gradients(module, experience, rows=range(8)):
    module.zero_grad()
    seen = module.step_over(experience, list(rows), lambda loss: loss.backward())
    return seen, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def moved(model, size=0.05):
    made = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=made)


# ---------------------------------------------------------------- a rollout, assessed


def test_the_value_before_a_token_does_not_know_it():
    critic = Critic(toys.scalar_model(0), mean=0.5, std=2.0)
    moved(critic.model)
    rollout = lay_out_rollout([[7, 8]], [[5, 6, 1]], toys.PAD, toys.END, CPU)
    got = critic(rollout.ids, rollout.counts)
    torch.testing.assert_close(got[0, 2:], (values(critic.model, rollout.ids)[0, 1:4] - 0.5) / 2)
    other = lay_out_rollout([[7, 8]], [[5, 6, 9]], toys.PAD, toys.END, CPU)
    torch.testing.assert_close(critic(other.ids, other.counts), got)


def test_an_unfinished_answer_pays_its_penalty_and_a_finished_one_does_not():
    returns = {}
    for penalty in (0.0, 5.0):
        module = module_of(toys.ground(share, PROMPTS), unfinished_penalty=penalty, gae_lambda=1.0)
        experience, _ = assessed(module, lay_out_rollout([[7, 8], [7, 8]], [[5, 6, toys.END], [5, 6, 7]], toys.PAD, toys.END, CPU))
        returns[penalty] = experience.streams["reward"].returns[:, 2]
    change = returns[5.0] - returns[0.0]
    assert change[0].item() == 0
    assert change[1].item() == pytest.approx(-5, rel=1e-3)


def test_an_untrained_policy_has_exactly_no_kl_and_whitened_advantages_have_no_mean():
    experience, seen = assessed(module_of(toys.ground(share, PROMPTS)))
    assert seen["kl"] == 0 and seen["kl_k3"] == 0
    assert experience.advantages[experience.rollout.counts].mean().abs() < 1e-6


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_what_is_charged_for_kl_follows_the_estimator_and_both_are_shown(estimator):
    ground = toys.ground(lambda *_: 0.0, PROMPTS)
    moved(ground.policy)
    module = module_of(ground, kl_coef=1.0, kl_estimator=estimator, gae_lambda=1.0)
    experience, seen = assessed(module)
    first = experience.rollout.counts.float().argmax(1)
    charged = -experience.streams["reward"].returns.gather(1, first.unsqueeze(1)).mean().item()  # all that is still to come is the KL
    assert charged == pytest.approx(seen["kl" if estimator == "k1" else "kl_k3"], rel=1e-4)
    assert seen["kl"] != pytest.approx(seen["kl_k3"], rel=1e-2)


# ---------------------------------------------------------------- the update


@pytest.mark.parametrize("value_function", ["model", "head"])
@pytest.mark.parametrize("safety", [None, {"multiplier": 0.5}])
def test_one_on_policy_step_is_the_policy_gradient(safety, value_function):
    ground = toys.ground(share, PROMPTS, costs=toys.judged_by(lambda prompt, answer: float(len(answer) > 3)))
    module = module_of(ground, value_coef=0.0, safety=safety, value_function=value_function)
    experience, _ = assessed(module)
    seen, got = gradients(module, experience)
    module.zero_grad()
    total, tokens = 0.0, 0
    for b, (prompt, answer) in enumerate(zip(experience.rollout.prompts, experience.rollout.answers, strict=True)):
        logits = ground.policy(torch.tensor([prompt + answer]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        logp = torch.distributions.Categorical(logits=logits).log_prob(torch.tensor(answer))
        total = total - (logp * experience.advantages[b, len(prompt) : len(prompt) + len(answer)]).sum()
        tokens += len(answer)
    (total / tokens).backward()
    assert seen["clipped"] == 0
    assert set(got) == {f"policy.{name}" for name, _ in ground.policy.named_parameters()}
    for name, p in module.policy.named_parameters():
        torch.testing.assert_close(got[f"policy.{name}"], p.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("prepared", [False, True])
def test_a_head_on_the_policys_trunk_reads_the_state_before_the_token_and_learns_with_its_trunk(prepared):
    ground = toys.ground(share, PROMPTS, costs=toys.judged_by(lambda prompt, answer: float(len(answer) > 3)))
    module = module_of(ground, value_function="head", safety={"multiplier": 0.5})
    torch.nn.init.normal_(module.value_head.weight)
    rollout = lay_out_rollout([[7, 8], [7, 8], [5]], [[5, 6, 1], [4, 9], [6, 6, 6, 2]], toys.PAD, toys.END, CPU)
    hidden = ground.policy.model(rollout.ids, use_cache=False).last_hidden_state
    if prepared:  # shared prompts among others
        fast.prepare(ground.policy)
    logp, expected = module.said_and_expected(rollout.ids, rollout.counts)
    torch.testing.assert_close(logp, answer_logprobs(ground.policy, rollout.ids, rollout.counts, 1.0)[0])
    for k, value in enumerate(expected):
        right = torch.where(rollout.counts, module.value_head(hidden)[..., k].roll(1, dims=1), 0.0)
        torch.testing.assert_close(value, right, rtol=1e-4, atol=1e-5)
    expected[1].sum().backward()
    assert module.value_head.weight.grad[1].abs().sum() > 0 and module.value_head.weight.grad[0].abs().sum() == 0
    assert ground.policy.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("value_function", ["model", "head"])
def test_parts_of_a_minibatch_add_up_to_its_gradient_and_its_numbers(value_function):
    modules = (module_of(toys.ground(share, PROMPTS), micro=micro, value_function=value_function) for micro in (None, 3, 1))
    results = [gradients(module, assessed(module)[0]) for module in modules]
    for seen, got in results[1:]:
        assert seen == pytest.approx(results[0][0], rel=1e-4, abs=1e-6)
        for name, whole in results[0][1].items():
            torch.testing.assert_close(got[name], whole, rtol=1e-3, atol=1e-6)


def test_reference_and_scorers_are_neither_trained_nor_checkpointed():
    module = module_of(toys.ground(share, PROMPTS, costs=toys.judged_by(share)), safety={}, reward_scale="running")
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"policy", "critic", "cost_critic"}
    assert {name.split(".")[0] for name in module.state_dict()} == {"policy", "critic", "cost_critic", "price", "scale", "multiplier"}


# ---------------------------------------------------------------- what follows the course of a run


def test_the_price_of_kl_by_hand():
    price = KlPrice(PPOConfig(**PLAN, kl_coef=0.1, kl_target=2.0, kl_horizon=100))
    price.follow(2.2, answers=50)  # 10 % above
    assert price.value == pytest.approx(0.1 * (1 + 0.1 * 0.5))
    price.follow(50.0, answers=50)  # counts as 20 % above
    assert price.value == pytest.approx(0.105 * 1.1)
    price.follow(0.0, answers=50)
    assert price.value == pytest.approx(0.105 * 1.1 * 0.9)
    fixed = KlPrice(PPOConfig(**PLAN, kl_coef=0.1))
    fixed.follow(50.0, answers=50)
    assert fixed.value == pytest.approx(0.1)


def test_running_scale_divides_by_the_deviation_of_all_rewards_so_far_and_keeps_signs():
    scale, made = RunningScale(), torch.Generator().manual_seed(0)
    batches = [torch.randn(n, generator=made) * 7 + 3 for n in (5, 1, 20)]
    for i, batch in enumerate(batches):
        seen = torch.cat(batches[: i + 1])
        torch.testing.assert_close(scale(batch), batch / seen.std(correction=0), rtol=1e-5, atol=1e-6)
    assert RunningScale()(torch.tensor([2.0, 2.0])).tolist() == [2.0, 2.0]  # nothing to scale by


def test_explained_variance_is_one_for_the_truth_and_nought_for_a_constant():
    truth = torch.tensor([1.0, 2.0, 4.0])
    assert explained(truth, truth) == 1
    assert explained(torch.ones(3), truth) == pytest.approx(0)


# ---------------------------------------------------------------- a known optimum


BANDIT = {"rollout_size": 128, "minibatch_size": 128, "max_new_tokens": 1, "learning_rate": 5e-3, "iterations": 150, "kl_coef": 0.2}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_on_one_word_answers_the_best_policy_in_closed_form_is_found(seed, tmp_path):
    """The best for E[reward] - price * KL(policy || reference) is the reference times exp(reward / price)."""
    ground = toys.ground(lambda prompt, answer: answer[0] / 10, [[5, 2]], seed=seed)
    before = toys.first_word(ground.reference, [5, 2])
    aim = before * (torch.arange(toys.WORDS) / 10 / 0.2).double().exp()
    aim /= aim.sum()
    align(module_of(ground, seed, **BANDIT), tmp_path, context(seed))
    distance = lambda p, q: 0.5 * (p - q).abs().sum().item()  # noqa: E731
    assert distance(before, aim) > 0.2
    assert distance(toys.first_word(ground.policy, [5, 2]), aim) < 0.06


SEVERAL = {
    "rollout_size": 64,
    "minibatch_size": 32,
    "epochs": 2,
    "max_new_tokens": 4,
    "iterations": 40,
    "learning_rate": 5e-3,
    "kl_coef": 0.01,
    "value_coef": 0.5,
}


@pytest.mark.parametrize(("seed", "value_function"), [(0, "model"), (1, "model"), (2, "model"), (0, "head"), (1, "head")])
def test_answers_of_several_words_reach_the_highest_reward(seed, value_function, tmp_path):
    ground = toys.ground(share, [[a, b] for a in (5, 6) for b in (2, 3)], seed=seed)
    figures = align(module_of(ground, seed, **SEVERAL, value_function=value_function), tmp_path, context(seed)).figures
    assert figures["reward_before"] < 0.3
    assert figures["reward_after"] > 0.9


def test_the_adaptive_price_brings_kl_to_its_target(tmp_path):
    ground = toys.ground(lambda prompt, answer: answer[0] / 10, [[5, 2]])
    module = module_of(ground, **{**BANDIT, "kl_coef": 0.3, "kl_target": 0.15, "kl_horizon": 1000})
    align(module, tmp_path, context())
    late = [reading["kl"] for reading in module.readings[-50:]]
    assert sum(late) / 50 == pytest.approx(0.15, abs=0.05)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_help_and_harm_pull_apart_the_best_policy_under_the_limit_is_found(seed, tmp_path):
    """The later the word the more it helps, and words 8 and 9 are unsafe (cost 1, else -1).

    The best policy with a price on cost is the reference times exp((reward - price * cost) / kl_coef).
    The right price is the one at which E[cost] is the limit.
    """
    cost_of = lambda prompt, answer: 1.0 if answer[0] >= 8 else -1.0  # noqa: E731
    ground = toys.ground(lambda prompt, answer: answer[0] / 10, [[5, 2]], seed=seed, costs=toys.judged_by(cost_of))
    before, reward = toys.first_word(ground.reference, [5, 2]), torch.arange(toys.WORDS).double() / 10
    cost = torch.tensor([cost_of(None, [word]) for word in range(toys.WORDS)]).double()
    best = lambda price: torch.softmax(before.log() + (reward - price * cost) / 0.1, 0)  # noqa: E731
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (best(middle) * cost).sum() > -0.6 else (low, middle)
    module = module_of(
        ground, seed, **{**BANDIT, "kl_coef": 0.1, "iterations": 250}, safety={"limit": -0.6, "learning_rate": 0.05, "memory": 0.0, "multiplier": 0.5}
    )
    align(module, tmp_path, context(seed))
    after = toys.first_word(ground.policy, [5, 2])
    assert (best(0.0) * cost).sum() > 0  # the reward alone does harm
    assert 0.5 * (after - best(low)).abs().sum() < 0.12
    assert sum(reading["cost"] for reading in module.readings[-50:]) / 50 == pytest.approx(-0.6, abs=0.06)
    assert (after * reward).sum() > (before * reward).sum() + 0.1


# ---------------------------------------------------------------- the stage


def test_the_value_function_begins_as_the_reward_models_scores_and_without_one_expects_nothing(line):
    config = PPOConfig(**PLAN)
    ground = prepare(config, line.given(), context())
    critic = critic_for("reward", (RewardTerm(kind="model", weight=2.0),), ground, line.given(), context())
    rollout = sample(ground.policy, [q.ids for q in ground.questions[:4]], stop_ids=ground.stops, max_new_tokens=6, temperature=1.0, seed=0)
    scores = ground.scorers["reward"](rollout, ground.stops[1])
    last = torch.tensor([len(p) + len(a) for p, a in zip(rollout.prompts, rollout.answers, strict=True)])
    longer = torch.cat([rollout.ids, torch.zeros(4, 1, dtype=torch.long)], 1)
    with torch.no_grad():
        read = critic(longer, torch.ones_like(longer, dtype=torch.bool)).gather(1, last.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(read, 2 * scores, rtol=1e-3, atol=1e-3)
    bare = critic_for("reward", (RewardTerm(kind="length"),), ground, line.given(), context())
    with torch.no_grad():
        assert (bare(rollout.ids, rollout.counts) == 0).all()


LONGER = {"iterations": 60, "rollout_size": 16, "minibatch_size": 8, "learning_rate": 3e-3, "heldout_prompts": 20}


@pytest.fixture(scope="module")
def free_of_charge(line, tmp_path_factory):
    return line.run("ppo", tmp_path_factory.mktemp("free"), **LONGER, kl_coef=0.0).figures


def test_ppo_raises_the_held_out_reward_and_moves_away_from_the_chat_model(free_of_charge):
    assert free_of_charge["reward_gain"] > 2 * free_of_charge["reward_gain_stderr"] > 0
    assert free_of_charge["kl"] > 1 and free_of_charge["kl_k3_per_token"] > 0.1


def test_a_price_on_kl_keeps_the_policy_near(line, free_of_charge, tmp_path):
    charged = line.run("ppo", tmp_path, **LONGER, kl_coef=30.0).figures  # scores of this microscopic scorer lie in the hundreds
    assert charged["kl"] < 0.3 * free_of_charge["kl"]
    assert charged["kl_k3_per_token"] < 0.3 * free_of_charge["kl_k3_per_token"]
    assert math.isfinite(charged["loss_last"])
