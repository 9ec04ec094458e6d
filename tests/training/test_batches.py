"""What a step sees is a pure function of the seed and the step, and packing loses nothing."""

import numpy as np
import pytest
import torch

from components.training.batches import lay_out, pack, pad_right, visits


def test_each_pass_sees_everything_once_in_an_order_of_its_own():
    first, second = visits(7, 0, 7, seed=1), visits(7, 7, 7, seed=1)
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert first != visits(7, 0, 7, seed=2)


def test_what_is_visited_does_not_depend_on_what_was_asked_before():
    whole = visits(5, 0, 23, seed=3)
    assert [visits(5, i, 1, seed=3)[0] for i in reversed(range(23))] == whole[::-1]


def test_packing_puts_each_text_into_exactly_one_row_and_overfills_none():
    lengths = np.random.default_rng(0).integers(1, 33, 200).tolist()
    rows = pack(lengths, 32)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 32
    assert len(rows) <= 1.05 * sum(lengths) / 32 + 1


def test_packing_by_hand():
    assert pack([3, 2, 2, 1], 4) == [[0, 3], [1, 2]]


def test_a_laid_out_row_restarts_positions_and_never_counts_a_first_token_or_padding():
    texts = [([7, 8, 9], [True, False, True]), ([5, 6], [False, True]), ([3], [True])]
    packed = lay_out([[0, 1], [2]], texts, pad_id=0)
    assert packed.ids.tolist() == [[7, 8, 9, 5, 6], [3, 0, 0, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert packed.counts.tolist() == [[False, False, True, False, True], [False] * 5]


def test_padding_goes_right():
    assert torch.equal(pad_right([[1, 2], [3]], 9), torch.tensor([[1, 2], [3, 9]]))


@pytest.mark.parametrize("count", [1, 13])
def test_a_batch_larger_than_the_data_goes_round(count):
    assert len(visits(3, 4, count, seed=0)) == count


def test_a_text_may_hold_any_of_unicodes_line_separators(tmp_path):
    import json

    from components.training.batches import read_rows

    rows = [{"text": "a\u2028b\u2029c\x85d\x0be"}, {"text": "next"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_rows(tmp_path / "rows.jsonl") == rows
    (tmp_path / "empty.jsonl").write_text("")
    assert read_rows(tmp_path / "empty.jsonl") == []
