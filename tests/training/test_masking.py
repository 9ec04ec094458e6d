"""What the masked objective hides: how much, what becomes of it, and that it depends on nothing but seed, step and row."""

import math

import pytest
import torch

from components.schema.config import BadInput
from components.training.masking import IGNORED, mask

SPECIAL, MASK, VOCABULARY = [0, 1, 2, 7], 2, 50


def text(count: int = 6, length: int = 40, seed: int = 0) -> torch.Tensor:
    """Rows of tokens, special ones among them."""
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


def corrupt(rows, fraction=0.15, seed=3, step=5, **more):
    return mask(rows, **{"fraction": fraction, "mask_id": MASK, "vocab_size": VOCABULARY, "special_ids": SPECIAL, "seed": seed, "step": step, **more})


@pytest.mark.parametrize("fraction", [0.01, 0.15, 0.4, 0.99])
def test_each_row_is_asked_for_its_fraction_of_ordinary_tokens_and_for_one_at_least(fraction):
    rows = text()
    _, labels = corrupt(rows, fraction)
    for row, asked in zip(rows.tolist(), (labels != IGNORED).sum(1).tolist(), strict=True):
        ordinary = sum(token not in SPECIAL for token in row)
        assert asked >= 1 and (abs(asked - fraction * ordinary) <= 0.5 or asked == 1)


def test_labels_are_the_original_tokens_and_everything_else_stays():
    rows = text()
    before = rows.clone()
    inputs, labels = corrupt(rows)
    assert torch.equal(rows, before)
    asked = labels != IGNORED
    assert torch.equal(labels[asked], rows[asked]) and torch.equal(inputs[~asked], rows[~asked])
    assert inputs.dtype == labels.dtype == torch.int64 and inputs.shape == labels.shape == rows.shape


def test_special_tokens_are_never_asked_for_and_never_put_in_but_for_the_mask():
    rows = text(200)
    inputs, labels = corrupt(rows, 0.9)
    special = torch.isin(rows, torch.tensor(SPECIAL))
    assert special.any() and (labels[special] == IGNORED).all()
    put_in = inputs[(inputs != rows) & (inputs != MASK)]
    assert len(put_in) > 100 and not torch.isin(put_in, torch.tensor(SPECIAL)).any()
    assert set(put_in.tolist()) == set(range(VOCABULARY)) - set(SPECIAL)


def test_of_the_tokens_asked_for_eight_in_ten_are_masked_and_one_in_ten_replaced():
    rows = text(400, 100)
    inputs, labels = corrupt(rows, 0.5)
    asked = labels != IGNORED
    n = asked.sum().item()
    masked, changed = (inputs[asked] == MASK).sum().item(), ((inputs != rows) & (inputs != MASK)).sum().item()
    ordinary = VOCABULARY - len(SPECIAL)
    for seen, probability in ((masked, 0.8), (changed, 0.1 * (1 - 1 / ordinary))):  # a replacement may be the token itself
        assert abs(seen - n * probability) < 4 * math.sqrt(n * probability * (1 - probability))


def test_every_position_is_asked_for_equally_often():
    rows = torch.full((3000, 20), 9)
    counts = (corrupt(rows, 0.25)[1] != IGNORED).sum(0)  # (T,) each binomial(3000, 1/4)
    assert (counts - 750).abs().max() < 5 * math.sqrt(3000 * 0.25 * 0.75)


def test_the_same_seed_and_step_give_the_same_and_another_seed_step_or_row_something_else():
    rows = text()[:1].repeat(3, 1)
    inputs, labels = corrupt(rows)
    assert all(map(torch.equal, corrupt(rows), (inputs, labels)))
    assert not torch.equal(labels[0], labels[1])
    for change in ({"seed": 4}, {"step": 6}, {"first_row": 3}):
        assert not torch.equal(corrupt(rows, **change)[1], labels)


def test_parts_of_a_batch_are_corrupted_as_the_whole_is():
    rows = text(6)
    whole = corrupt(rows)
    for world in (2, 3, 6):
        each = 6 // world
        parts = [corrupt(rows[r * each : (r + 1) * each], first_row=r * each) for r in range(world)]
        assert all(torch.equal(torch.cat(pieces), all_) for pieces, all_ in zip(zip(*parts, strict=True), whole, strict=True))


def test_a_row_without_ordinary_tokens_is_left_alone():
    rows = torch.tensor([SPECIAL * 3, [9] * 12])
    inputs, labels = corrupt(rows)
    assert torch.equal(inputs[0], rows[0]) and (labels[0] == IGNORED).all() and (labels[1] != IGNORED).sum() == 2


def test_a_tokenizer_that_cannot_mask_is_refused():
    with pytest.raises(BadInput, match=r"objective masked needs a mask token, and the tokenizer has none .*Give the tokenizer a mask token"):
        corrupt(text(), mask_id=None)
    with pytest.raises(BadInput, match=r"the mask token 9 is not among the special tokens \[0, 1, 2, 7\]: it would be asked for like text"):
        corrupt(text(), mask_id=9)
    with pytest.raises(BadInput, match="all 3 tokens of the vocabulary are special"):
        corrupt(text(), vocab_size=3)
