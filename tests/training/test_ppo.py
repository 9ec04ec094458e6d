"""Rollouts are laid out and assessed as the maths asks, one on-policy step is the policy gradient, and the loop learns."""

import math

import pytest
import torch

from components.models.build import load, load_tokenizer, stop_ids
from components.models.heads import values
from components.schema.config import BadInput
from components.schema.training import PPOConfig
from components.training.ppo import PPO, answer_values, comparison, explained, in_chunks, load_scorer, read_prompts, token_rewards
from components.training.rollouts import answer_logprobs, lay_out_rollout, sample

CPU = torch.device("cpu")


@pytest.fixture
def policy(line):
    return load(line.of("sft")).eval()


def make_module(line, policy, **changes) -> PPO:
    words = load_tokenizer(line.of("sft"))
    scorer = load_scorer(line.of("reward"), 0, CPU)
    config = PPOConfig(**{"iterations": 1, "rollout_size": 8, "minibatch_size": 8, "epochs": 1, "max_new_tokens": 6, **changes})
    prompts = read_prompts(line.preferences / "train.jsonl", words, 26)
    return PPO(policy, load_scorer(line.of("reward"), 0, CPU).model.requires_grad_(True), load(line.of("sft")), scorer, prompts, config, stop_ids(words), seed=0)


def rollout_of(module, n=8):
    return sample(module.policy, module.prompts[:n], stop_ids=module.stops, max_new_tokens=6, temperature=1.0, seed=3)


# ---------------------------------------------------------------- rollouts


def test_a_rollout_counts_the_answers_tokens_and_only_an_end_of_turn_finishes_it():
    rollout = lay_out_rollout([[7, 8], [9]], [[5, 4], [6, 6, 0]], pad_id=0, end_id=4, device=CPU)
    assert rollout.ids.tolist() == [[7, 8, 5, 4], [9, 6, 6, 0]]
    assert rollout.counts.tolist() == [[False, False, True, True], [False, True, True, True]]
    assert rollout.finished.tolist() == [True, False]  # the second ended its document, not its turn
    assert rollout.rows([0])[0].shape == (1, 4)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_entropies_equal_a_loop_over_whole_softmaxes(policy, temperature):
    rollout = lay_out_rollout([[7, 8], [9, 10, 11]], [[5, 4], [6, 6, 6, 12]], pad_id=0, end_id=4, device=CPU)
    logp, entropy = answer_logprobs(policy, rollout.ids, rollout.counts, temperature)
    for b, (prompt, answer) in enumerate(zip(rollout.prompts, rollout.answers, strict=True)):
        for k, token in enumerate(answer):
            t = len(prompt) + k
            seen = torch.tensor([[*prompt, *answer[:k]]])
            p = torch.distributions.Categorical(logits=policy(seen).logits[0, -1] / temperature)
            assert logp[b, t].item() == pytest.approx(p.log_prob(torch.tensor(token)).item(), abs=1e-5)
            assert entropy[b, t].item() == pytest.approx(p.entropy().item(), abs=1e-5)
    assert (logp[~rollout.counts] == 0).all() and (entropy[~rollout.counts] == 0).all()


@torch.no_grad()
def test_assessing_in_chunks_changes_nothing(line, policy, monkeypatch):
    rollout = rollout_of(make_module(line, policy))
    whole = answer_logprobs(policy, rollout.ids, rollout.counts, 1.0)
    monkeypatch.setattr("components.training.ppo.FORWARD_ROWS", 3)
    parts = in_chunks(lambda ids, counts: answer_logprobs(policy, ids, counts, 1.0), rollout)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_value_before_a_token_does_not_know_it(line, policy):
    module = make_module(line, policy)
    scorer = module.frozen[1]
    rollout = lay_out_rollout([[7, 8]], [[5, 6, 4]], pad_id=0, end_id=4, device=CPU)
    got = answer_values(module.critic, scorer, rollout.ids, rollout.counts)
    every = (values(module.critic, rollout.ids) - scorer.mean) / scorer.std
    torch.testing.assert_close(got[0, 2:], every[0, 1:4])
    other = lay_out_rollout([[7, 8]], [[5, 6, 9]], pad_id=0, end_id=4, device=CPU)
    torch.testing.assert_close(answer_values(module.critic, scorer, other.ids, other.counts), got)


# ---------------------------------------------------------------- rewards


def test_token_rewards_by_hand():
    counts = torch.tensor([[False, True, True, False], [False, False, False, True]])
    kl = torch.tensor([[9.0, 0.5, -0.25, 9.0], [9.0, 9.0, 9.0, 1.0]])
    rewards = token_rewards(torch.tensor([2.0, -1.0]), kl, counts, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[0.0, -0.05, 2.025, 0.0], [0.0, 0.0, 0.0, -1.1]]))


def test_an_unfinished_answer_pays_its_penalty_and_a_finished_one_does_not(line, policy):
    returns = {}
    for penalty in (0.0, 5.0):
        module = make_module(line, policy, unfinished_penalty=penalty, gae_lambda=1.0)
        experience, _ = module.assess(lay_out_rollout([[7, 8], [7, 8]], [[5, 6, 4], [5, 6, 7]], pad_id=0, end_id=4, device=CPU))
        returns[penalty] = experience.returns[:, 2]
    change = returns[5.0] - returns[0.0]
    assert change[0].item() == 0
    assert change[1].item() == pytest.approx(-5, rel=1e-3)


def test_an_untrained_policy_has_exactly_no_kl_and_whitened_advantages_have_no_mean(line, policy):
    module = make_module(line, policy)
    experience, seen = module.assess(rollout_of(module))
    assert seen["kl"] == 0 and seen["kl_k3_per_token"] == 0
    assert experience.advantages[experience.rollout.counts].mean().abs() < 1e-6


# ---------------------------------------------------------------- the update


def test_one_on_policy_step_of_ppo_is_the_policy_gradient(line, policy):
    module = make_module(line, policy, value_coef=0.0)
    experience, _ = module.assess(rollout_of(module))
    loss, seen = module.minibatch_loss(experience, list(range(8)))
    loss.backward()
    got = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    total, tokens = 0.0, 0
    for b, (prompt, answer) in enumerate(zip(experience.rollout.prompts, experience.rollout.answers, strict=True)):
        logits = policy(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        logp = torch.distributions.Categorical(logits=logits).log_prob(torch.tensor(answer))
        total = total - (logp * experience.advantages[b, len(prompt) : len(prompt) + len(answer)]).sum()
        tokens += len(answer)
    (total / tokens).backward()
    assert seen["clipped"] == 0
    for a, p in zip(got, policy.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-3, atol=1e-5)


def test_minibatches_of_a_rollout_average_to_the_whole_rollouts_gradient_when_answers_are_of_one_length(line, policy):
    module = make_module(line, policy, unfinished_penalty=0.0)
    prompts = module.prompts[:4]
    experience, _ = module.assess(lay_out_rollout(prompts, [[5, 6, 7], [8, 9, 4], [5, 5, 5], [9, 8, 4]], pad_id=0, end_id=4, device=CPU))

    def gradient(batches):
        module.zero_grad()
        for which in batches:
            (module.minibatch_loss(experience, which)[0] / len(batches)).backward()
        return [p.grad.clone() for p in module.parameters() if p.grad is not None]

    for a, b in zip(gradient([[0, 1, 2, 3]]), gradient([[2, 0], [3, 1]]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_reference_and_scorer_are_neither_trained_nor_checkpointed(line, policy):
    module = make_module(line, policy)
    assert {name.split(".")[0] for name in module.state_dict()} == {"policy", "critic"}
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"policy", "critic"}


# ---------------------------------------------------------------- the stage


def test_the_gain_comes_with_the_error_of_the_paired_difference():
    same = {"kl": 0.0, "kl_stderr": 0.0, "kl_per_token": 0.0, "kl_k3_per_token": 0.0, "entropy": 1.0, "length": 2.0, "finished": 1.0}
    figures = comparison({"rewards": [0.0, 10.0, 20.0], **same}, {"rewards": [1.0, 12.0, 23.0], **same})
    assert figures["reward_gain"] == pytest.approx(2)
    assert figures["reward_gain_stderr"] == pytest.approx(1 / math.sqrt(3))


def test_explained_variance_is_one_for_the_truth_and_nought_for_a_constant():
    truth = torch.tensor([1.0, 2.0, 4.0])
    assert explained(truth, truth) == 1
    assert explained(torch.ones(3), truth) == pytest.approx(0)


@pytest.fixture(scope="module")
def free_of_charge(line, tmp_path_factory):
    return line.run("ppo", tmp_path_factory.mktemp("free"), **LONGER, kl_coef=0.0).figures


LONGER = {"iterations": 40, "rollout_size": 16, "minibatch_size": 8, "learning_rate": 3e-3}


def test_ppo_raises_the_held_out_reward_and_moves_away_from_the_chat_model(free_of_charge):
    assert free_of_charge["reward_gain"] > 2 * free_of_charge["reward_gain_stderr"] > 0
    assert free_of_charge["kl"] > 1 and free_of_charge["kl_k3_per_token"] > 0.1


def test_a_price_on_kl_keeps_the_policy_near(line, free_of_charge, tmp_path):
    charged = line.run("ppo", tmp_path, **LONGER, kl_coef=30.0).figures  # scores of this microscopic scorer lie in the hundreds
    assert charged["kl"] < 0.3 * free_of_charge["kl"]
    assert charged["kl_k3_per_token"] < 0.3 * free_of_charge["kl_k3_per_token"]


def test_prompts_are_distinct_and_a_context_without_room_is_an_error(line):
    words = load_tokenizer(line.tokenizer)
    prompts = read_prompts(line.preferences / "train.jsonl", words, 26)
    assert len(prompts) == len({tuple(p) for p in prompts}) <= 60
    with pytest.raises(BadInput, match=r"none of the \d+ prompts of .* fits 2 tokens.*Lower max_new_tokens"):
        read_prompts(line.preferences / "train.jsonl", words, 2)
