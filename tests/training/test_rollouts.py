"""Rollouts are laid out as the maths asks; log-probabilities and entropies equal a loop over whole softmaxes."""

import math

import pytest
import torch

from components.models.build import build, load_tokenizer
from components.schema.training import ModelConfig
from components.training import fast, rollouts
from components.training.rollouts import answer_logprobs, lay_out_rollout, sample

CPU = torch.device("cpu")
PROMPTS, ANSWERS = [[7, 8], [9, 10, 11], [12]], [[5, 4], [6, 6, 6, 12], [13, 4]]


@pytest.fixture
def words(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


def make(words, **changes):
    model = build(ModelConfig(**{"hidden_size": 32, "layers": 2, "heads": 2, "context_tokens": 32, **changes}), words, seed=0).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # distributions that are far from uniform
    return model


def lay_out(prompts=PROMPTS, answers=ANSWERS):
    return lay_out_rollout(prompts, answers, pad_id=0, end_id=4, device=CPU)


def test_a_rollout_counts_the_answers_tokens_and_only_an_end_of_turn_finishes_it():
    rollout = lay_out([[7, 8], [9]], [[5, 4], [6, 6, 0]])
    assert rollout.ids.tolist() == [[7, 8, 5, 4], [9, 6, 6, 0]]
    assert rollout.counts.tolist() == [[False, False, True, True], [False, True, True, True]]
    assert rollout.finished.tolist() == [True, False]  # the second ended its document, not its turn
    assert rollout.rows([0])[0].shape == (1, 4)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("changes", [{}, {"architecture": "gpt2"}, {"architecture": "gemma2"}, {"tie_embeddings": False, "architecture": "qwen2"}], ids=str)
def test_log_probabilities_and_entropies_equal_a_loop_over_whole_softmaxes(words, changes, temperature, monkeypatch):
    model, rollout = make(words, **changes), lay_out()
    monkeypatch.setattr(rollouts, "chunk_rows", lambda vocabulary: 3)
    logp, entropy = answer_logprobs(model, rollout.ids, rollout.counts, temperature)
    for b, (prompt, answer) in enumerate(zip(rollout.prompts, rollout.answers, strict=True)):
        for k, token in enumerate(answer):
            p = torch.distributions.Categorical(logits=model(torch.tensor([[*prompt, *answer[:k]]])).logits[0, -1] / temperature)
            t = len(prompt) + k
            assert logp[b, t].item() == pytest.approx(p.log_prob(torch.tensor(token)).item(), abs=2e-5)
            assert entropy[b, t].item() == pytest.approx(p.entropy().item(), abs=2e-5)
    assert (logp[~rollout.counts] == 0).all() and (entropy[~rollout.counts] == 0).all()


@pytest.mark.parametrize("prepared", [False, True])
def test_the_gradient_of_log_probabilities_is_that_of_whole_softmaxes(words, prepared):
    rollout, weights = lay_out(), torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    gradients = []
    for plain in (False, True):
        model = make(words)
        if prepared and not plain:
            assert fast.prepare(model) == 2
        if plain:
            log_p = (model(rollout.ids, use_cache=False).logits[:, :-1] / 0.7).log_softmax(-1).gather(2, rollout.ids[:, 1:, None])[..., 0]
            loss = (log_p * weights[:, 1:])[rollout.counts[:, 1:]].sum()
        else:
            logp, entropy = answer_logprobs(model, rollout.ids, rollout.counts, 0.7)
            assert not entropy.requires_grad
            loss = (logp * weights).sum()
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_padding_and_the_order_of_the_rows_leave_log_probabilities_unchanged(words):
    model, rollout = make(words), lay_out()
    logp, _ = answer_logprobs(model, rollout.ids, rollout.counts, 1.0)
    turned = lay_out(PROMPTS[::-1], ANSWERS[::-1])
    torch.testing.assert_close(answer_logprobs(model, turned.ids, turned.counts, 1.0)[0].flip(0), logp)
    wider = lay_out([*PROMPTS, [5] * 20], [*ANSWERS, [6]])
    torch.testing.assert_close(answer_logprobs(model, wider.ids, wider.counts, 1.0)[0][:3, :7], logp)
    some, counts = rollout.rows([0, 2])
    torch.testing.assert_close(answer_logprobs(model, some, counts, 1.0)[0], logp[[0, 2], : some.shape[1]])


@torch.no_grad()
def test_entropy_that_is_not_asked_for_is_not_made(words, monkeypatch):
    model, rollout = make(words), lay_out()
    expected = answer_logprobs(model, rollout.ids, rollout.counts, 1.0)[0]
    monkeypatch.setattr(rollouts, "_look", lambda *_: pytest.fail("made"))
    logp, entropy = answer_logprobs(model, rollout.ids, rollout.counts, 1.0, with_entropy=False)
    torch.testing.assert_close(logp, expected)
    assert math.isnan(entropy[rollout.counts].sum().item())


def test_the_answers_to_a_prompt_are_neighbours_and_the_same_whether_it_is_copied_or_repeated(words):
    model, how = make(words), {"stop_ids": [4, 0], "max_new_tokens": 6, "temperature": 1.0, "seed": 3}
    copied = sample(model, PROMPTS, **how, copies=3)
    assert copied.prompts == [prompt for prompt in PROMPTS for _ in range(3)]
    assert sample(model, copied.prompts, **how).answers == copied.answers
    assert len({tuple(answer) for answer in copied.answers[:3]}) > 1
    assert sample(model, PROMPTS, **{**how, "seed": 4}, copies=3).answers != copied.answers


def test_an_engine_answers_with_the_policys_own_weights(words):
    class Echo:
        def take(self, model):
            self.taken = model

        def generate(self, prompts, *, stop_ids, pad_id, max_new_tokens, temperature, seed):
            return [[prompt[-1], stop_ids[0]] for prompt in prompts]

    model, engine = make(words), Echo()
    rollout = sample(model, PROMPTS, stop_ids=[4, 0], max_new_tokens=6, temperature=1.0, seed=3, engine=engine)
    assert engine.taken is model
    assert rollout.answers == [[8, 4], [11, 4], [12, 4]] and rollout.finished.all()


@torch.no_grad()
def test_sampled_tokens_are_as_likely_as_the_training_forward_says(words):
    """Over many answers, the mean of -log p of what was sampled is the entropy: what is sampled from is what is trained."""
    model = make(words)
    rollout = sample(model, [[7, 8]] * 1500, stop_ids=[4, 0], max_new_tokens=4, temperature=0.8, seed=0)
    logp, entropy = (x[rollout.counts].double() for x in answer_logprobs(model, rollout.ids, rollout.counts, 0.8))
    gap = -logp - entropy
    assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(len(gap))
