"""What a step sees is a pure function of the seed and the step, and packing loses nothing."""

import numpy as np
import pytest
import torch

from components.schema.config import BadInput
from components.training.batches import Passes, lay_out, pack, pad_right, visits, weights_by_kind


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


def slow_pack(lengths, context_tokens):
    """Best fit decreasing, looking at every row for every text."""
    rows = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = [context_tokens - sum(lengths[j] for j in row) for row in rows]
        fitting = [r for r in range(len(rows)) if room[r] >= lengths[i]]
        if not fitting:
            rows.append([i])
        else:
            rows[min(fitting, key=lambda r: room[r])].append(i)
    return rows


def test_packing_leaves_as_little_room_as_looking_at_every_row_does():
    lengths = np.random.default_rng(1).integers(1, 65, 120).tolist()

    def left(rows):
        return sorted(sum(lengths[i] for i in row) for row in rows)

    assert left(pack(lengths, 64)) == left(slow_pack(lengths, 64))


# ---------------------------------------------------------------- passes with weights


def counted(passes, passes_gone_through):
    rows = sum(len(passes._packed(number)) for number in range(passes_gone_through))
    return passes.seen(rows)


def test_without_weights_every_pass_has_the_same_rows_in_the_order_of_visits():
    lengths = [3, 2, 2, 1]
    passes = Passes(lengths, seed=3, context_tokens=4)
    packed = pack(lengths, 4)
    assert passes.rows(1, 7) == [packed[i] for i in visits(len(packed), 1, 7, seed=3)]
    assert counted(passes, 5).tolist() == [5] * 4


@pytest.mark.parametrize("context_tokens", [16, None])
def test_a_text_of_weight_w_is_drawn_in_w_of_the_passes_as_evenly_as_can_be(context_tokens):
    weights = [2.0] * 20 + [1.0] * 20 + [0.5] * 20 + [0.3] * 20
    passes = Passes([5] * 80, seed=1, context_tokens=context_tokens, weights=weights)
    for gone in (1, 2, 7, 10):
        drawn = counted(passes, gone)
        assert (np.abs(drawn - gone * np.asarray(weights)) < 1).all()
        assert drawn[:20].tolist() == [2 * gone] * 20
    assert 5 < counted(passes, 1)[40:60].sum() < 15  # not all of weight 1/2 come in the same pass


def test_rows_with_weights_do_not_depend_on_what_was_asked_before():
    def new():
        return Passes([4, 3, 5, 2, 6], seed=2, context_tokens=8, weights=[0.4, 1.0, 2.0, 0.1, 1.0])

    whole = new().rows(0, 40)
    backwards = new()
    assert [backwards.rows(i, 1)[0] for i in reversed(range(40))] == whole[::-1]
    assert all(sum([4, 3, 5, 2, 6][i] for i in row) <= 8 for row in whole)


def test_weights_go_by_kind_and_a_kind_that_is_not_there_is_named():
    assert weights_by_kind({"a": 2.0}, ["a", "b", "a"]) == [2.0, 1.0, 2.0]
    with pytest.raises(BadInput, match=r"mix names c, .*its weight would be ignored"):
        weights_by_kind({"c": 2.0}, ["a", "b"])


# ---------------------------------------------------------------- rows as tensors


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
