"""What the comparison of training steps is measured with."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks import late, step_profile
from benchmarks.peers.nanogpt import NanoGPT
from benchmarks.peers.train_side import pretraining
from components.training import tokens


@pytest.fixture
def nanogpt():
    torch.manual_seed(0)
    return NanoGPT(vocabulary=50, context=12, width=16, layers=2, heads=2)


def test_nanogpts_shape_at_the_measured_size_has_its_parameters():
    model = NanoGPT(4096, 256, 256, 6, 4)
    norms, block = 256, 12 * 256**2 + 2 * 256
    assert sum(p.numel() for p in model.parameters()) == 4096 * 256 + 256 * 256 + 6 * block + norms


def test_nanogpt_does_not_see_what_comes_later(nanogpt):
    ids = torch.randint(50, (2, 12))
    heads = []
    nanogpt.head.register_forward_hook(lambda module, args, out: heads.append(out.detach()))
    for row in (ids, torch.cat((ids[:, :6], (ids[:, 6:] + 1) % 50), 1)):
        nanogpt(row, row)
    torch.testing.assert_close(heads[0][:, :6], heads[1][:, :6])
    assert not torch.allclose(heads[0][:, 6:], heads[1][:, 6:])


def test_nanogpts_loss_is_that_of_its_logits(nanogpt):
    ids = torch.randint(50, (2, 12))
    seen = []
    nanogpt.head.register_forward_hook(lambda module, args, out: seen.append(out))
    loss = nanogpt(ids, ids.roll(-1, 1))
    torch.testing.assert_close(loss, cross_entropy(seen[0].flatten(0, 1), ids.roll(-1, 1).flatten()))


def test_shards_of_the_benchmark_are_read_by_the_trainer(tmp_path):
    late.write_tokens(tmp_path, 10_000, 16, 90)
    shards = tokens.TokenShards(tmp_path / "tokens", tokens.read_mix(tmp_path), 16)
    rows = shards.rows(*tokens.Schedule(tokens.read_mix(tmp_path), shards.sizes, 5, 4, seed=0).batch(3))
    assert rows.shape == (4, 17) and int(rows.max()) < 90


def test_a_checkpoint_is_moved_in_all_its_counters_and_nothing_else():
    state = {"global_step": 10, "loops": {"ready": 11, "other": 3}, "flag": True, "step": torch.tensor(10.0), "weights": torch.full((2,), 10.0)}
    moved = late._moved(state)
    assert moved["global_step"] == late.LATE and moved["loops"] == {"ready": late.LATE + 1, "other": 3} and moved["flag"] is True
    assert moved["step"].item() == late.LATE and torch.equal(moved["weights"], state["weights"])


def test_resuming_late_asks_for_the_batch_that_follows(tmp_path, capsys):
    late.prepare(tmp_path)
    for step in (late.EARLY, late.LATE):
        late.resume(tmp_path, step)
        assert f"resumed after step {step} of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("operation", "kind"),
    [("aten::addmm_", "matrix products"), ("_FeedForwardBackward", "SwiGLU, normalisation and positions in one pass each"), ("aten::copy_", "copies and layouts"), ("aten::silu", "other passes over activations")],
)
def test_operations_are_counted_where_they_belong(operation, kind):
    assert step_profile.kind_of(operation) == kind


def test_the_comparison_trains_as_a_recipe_would():
    assert json.loads(pretraining(100).model_dump_json())["batch_size"] == 16
