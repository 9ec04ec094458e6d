"""Every kind of decoder goes on as the model itself would, whatever shares its batch, and finished rows leave."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from components.models import decoding
from components.models.build import build
from components.models.decoding import Blocks, Cached, decoder_for
from components.models.generate import close_ranks, generate
from components.schema.training import ModelConfig

PROMPTS = [[5, 6, 7], [8, 9], [20, 21, 22, 23, 24, 25], [30], [8, 9], [5, 6, 7]]
SMALL = {"hidden_size": 32, "layers": 2, "context_tokens": 64}
KINDS = {
    "llama": (SMALL | {"heads": 4}, Blocks),
    "grouped llama": (SMALL | {"heads": 4, "architecture": "llama", "extra": {"num_key_value_heads": 2}}, Blocks),
    "qwen2": (SMALL | {"heads": 2, "architecture": "qwen2"}, Blocks),
    "mistral": (SMALL | {"heads": 2, "architecture": "mistral", "extra": {"sliding_window": 64}}, Blocks),
    "mistral with a narrow window": (SMALL | {"heads": 2, "architecture": "mistral", "extra": {"sliding_window": 5}}, Cached),
    "gpt2": (SMALL | {"heads": 2, "architecture": "gpt2"}, Cached),
    "bloom": ({"hidden_size": 32, "layers": 2, "heads": 2, "architecture": "bloom"}, Cached),
    "mixtral": (SMALL | {"heads": 2, "architecture": "mixtral"}, Cached),
    "gemma2": (SMALL | {"heads": 2, "architecture": "gemma2"}, Cached),
    "mamba": ({"hidden_size": 32, "layers": 2, "architecture": "mamba"}, type(None)),
    "mamba2": ({"hidden_size": 32, "layers": 2, "architecture": "mamba2"}, type(None)),
    "rwkv": ({"hidden_size": 32, "layers": 2, "context_tokens": 64, "architecture": "rwkv"}, type(None)),
}


def make(words, kind):
    model = build(ModelConfig(**KINDS[kind][0]), words, seed=0).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p + 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))  # norms and biases are no ones and noughts
    return model


@torch.no_grad()
def whole_forward(model, ids):
    """Logits after the last token, of one text, without cache and padding."""
    return model(torch.tensor([ids])).logits[0, -1]


@torch.no_grad()
@pytest.mark.parametrize("kind", list(KINDS))
def test_each_architecture_gets_its_decoder_whose_steps_equal_the_forward_of_the_whole_text(words, kind):
    model = make(words, kind)
    rows = torch.tensor([0, 1, 2, 3, 1, 0])
    decoder = decoder_for(model, PROMPTS[:4], rows, pad_id=0, room=8)
    assert type(decoder) is KINDS[kind][1]
    if decoder is None:
        return
    texts = [list(prompt) for prompt in PROMPTS]
    logits, generator = decoder.logits, torch.Generator().manual_seed(0)
    for step in range(7):
        for text, got in zip(texts, logits, strict=True):
            torch.testing.assert_close(got, whole_forward(model, text), rtol=1e-3, atol=2e-4)
        if step in (2, 4):  # rows 1 and the last leave, in another order than they came
            kept = torch.tensor([0, len(texts) - 2, 2]) if step == 2 else torch.tensor([2, 1])
            decoder.keep(kept)
            texts = [texts[k] for k in kept]
        tokens = torch.randint(5, 200, (len(texts),), generator=generator)
        texts = [[*text, token] for text, token in zip(texts, tokens.tolist(), strict=True)]
        logits = decoder.step(tokens)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba", "rwkv", "mixtral"])
def test_a_sampled_answer_does_not_depend_on_the_batch_it_shares(words, kind):
    model = make(words, kind)
    how = {"stop_ids": [4, 0], "pad_id": 0, "max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    together = generate(model, PROMPTS, **how)
    assert generate(model, PROMPTS, **how, batch_size=2) == together
    assert generate(model, PROMPTS[:3], **how) == together[:3]
    assert together[0] != together[5]  # equal prompts, numbers of their own


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mamba", "mamba2", "rwkv"])
def test_a_model_that_must_not_see_padding_answers_as_its_whole_forward(words, kind):
    model, greedy = make(words, kind), []
    for prompt in PROMPTS:
        text = list(prompt)
        for _ in range(5):
            text.append(int(whole_forward(model, text).argmax()))
        greedy.append(text[len(prompt) :])
    assert generate(model, PROMPTS, stop_ids=[299], pad_id=0, max_new_tokens=5) == greedy


def test_equal_prompts_are_read_once(words, monkeypatch):
    model = make(words, "llama")
    seen = []
    own = decoding._read
    monkeypatch.setattr(decoding, "_read", lambda model, ids, *rest: seen.append(len(ids)) or own(model, ids, *rest))
    generate(model, [[5, 6, 7]] * 8 + [[8, 9]] * 8, stop_ids=[4, 0], pad_id=0, max_new_tokens=3, temperature=1.0)
    assert seen == [2]


def test_a_row_that_has_ended_is_not_computed_any_more(words, monkeypatch):
    model = make(words, "llama")
    sizes = []
    own = Blocks.step
    monkeypatch.setattr(Blocks, "step", lambda self, tokens: sizes.append(len(tokens)) or own(self, tokens))
    answers = generate(model, PROMPTS * 4, stop_ids=list(range(0, 200, 3)), pad_id=0, max_new_tokens=12, temperature=1.0, seed=1)
    assert len({len(answer) for answer in answers}) > 2
    assert sizes == [size for k in range(1, 12) if (size := sum(len(answer) > k for answer in answers))]


def test_an_adapted_model_is_left_to_transformers(words):
    adapted = get_peft_model(make(words, "llama"), LoraConfig(target_modules="all-linear", init_lora_weights=False)).base_model.model.eval()
    assert type(decoder_for(adapted, PROMPTS, torch.arange(6), 0, 4)) is Cached


def test_rows_that_stay_close_ranks_with_few_moves():
    assert close_ranks(torch.tensor([True, False, True, True, False, True])).tolist() == [0, 5, 2, 3]
    assert close_ranks(torch.tensor([False, False, True])).tolist() == [2]
    assert close_ranks(torch.tensor([False])).tolist() == []
    assert close_ranks(torch.tensor([True, True, False])).tolist() == [0, 1]
