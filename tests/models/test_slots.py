"""Rows that come and go are continued as the model itself would continue each, whatever shares the batch."""

import pytest
import torch

from components.models import slots
from components.models.slots import Alone, Slots, Together, slots_for
from tests.models.test_decoding import PROMPTS, make, whole_forward

KINDS = {"llama": Slots, "grouped llama": Slots, "qwen2": Slots, "mistral": Slots, "gpt2": Together, "mistral with a narrow window": Together, "mamba": Alone}


def held(texts, logits, model):
    for text, got in zip(texts, logits, strict=True):
        torch.testing.assert_close(got, whole_forward(model, text), rtol=1e-3, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", list(KINDS))
def test_rows_join_at_any_step_and_leave_and_each_goes_on_as_the_whole_text_would(words, kind):
    model = make(words, kind)
    live = slots_for(model, rows=4, context=32, pad_id=0)
    assert type(live) is KINDS[kind]
    waiting, texts, generator, joined = [list(prompt) for prompt in PROMPTS], [], torch.Generator().manual_seed(0), 0
    for turn in range(24):
        new = [waiting.pop(0) for _ in range(min(live.room(), len(waiting), 2))]
        joined += len(new)
        if new:
            held(new, live.join(new), model)
            texts += new
        if not texts:
            break
        tokens = torch.randint(5, 200, (len(texts),), generator=generator)
        texts = [[*text, token] for text, token in zip(texts, tokens.tolist(), strict=True)]
        held(texts, live.step(tokens), model)
        if turn % 3 == 1:
            live.leave(0)  # the last takes its place
            texts = [texts[-1], *texts[1:-1]] if len(texts) > 1 else []
    assert joined == len(PROMPTS)


@torch.no_grad()
@pytest.mark.parametrize("kind", list(KINDS))
def test_what_comes_after_each_token_of_a_prompt_is_told_to_who_asks(words, kind, monkeypatch):
    monkeypatch.setattr(slots, "READ_BLOCK", 3)
    model, told = make(words, kind), []
    live = slots_for(model, rows=4, context=32, pad_id=0)
    prompts = [list(prompt) for prompt in PROMPTS[:2]] if live.room() > 1 else [list(PROMPTS[0])]
    asks = len(prompts) - 1
    held(prompts, live.join(prompts, {asks: told.append}), model)
    assert max(map(len, told)) <= 3
    held([prompts[asks][:n] for n in range(1, len(prompts[asks]))], torch.cat(told), model)
    live.leave(0)
    if live.room():
        live.join([[7]], {0: lambda block: pytest.fail("there is nothing before the last token")})


def test_rows_are_as_many_as_their_caches_may_take(words, monkeypatch):
    model = make(words, "llama")
    row = 2 * 32 * 32 * 4 * 2  # key and value, hidden numbers, columns, bytes, layers
    monkeypatch.setattr(slots, "CACHE_BYTES", 3 * row)
    assert Slots(model, rows=8, context=32).room() == 3
    monkeypatch.setattr(slots, "CACHE_BYTES", 1)
    assert Slots(model, rows=8, context=32).room() == 1
