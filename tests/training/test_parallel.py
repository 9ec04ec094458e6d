"""One process, several, and micro-batches train alike: same batches, same curve, same weights but for rounding; checkpoints pass between them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from components.schema.config import BadInput
from components.schema.recipe import Resources
from components.training import parallel
from components.training.checkpoints import best_checkpoint
from components.training.trainer import Context, fit

from . import parallel_run
from .parallel_run import Counting, batch, train

ROOT = Path(__file__).parents[2]
STRATEGIES = ["ddp", "fsdp", "tensor"]
KEEP_ALL = {"keep_checkpoints": 9}


def in_processes(out: Path, strategy: str, processes: int = 2, config: dict | None = None, **resources) -> dict:
    out.mkdir(exist_ok=True)
    resources = {"processes": processes, "strategy": strategy, **resources}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), parallel_run.__file__, out, json.dumps(resources), json.dumps(config or {})],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "course.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process on whole batches, with its work folder."""
    folder = tmp_path_factory.mktemp("alone")
    course, module = train(folder, {}, KEEP_ALL, look=True)
    return folder, course.losses, module.model.state_dict()


def assert_same_weights(weights, expected, tolerance=2e-5):
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def heldout_losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    return [row["heldout_loss"] for row in rows if "heldout_loss" in row]


def keep_only_step(work: Path, step: int) -> None:
    for path in work.glob("step-*.ckpt"):
        if not path.name.startswith(f"step-{step:08d}"):
            path.unlink()


# ---------------------------------------------------------------- what each process reads


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("shares", [1, 2, 3])
@pytest.mark.parametrize("micro", [None, 1, 2, 5])
def test_every_row_is_read_once_and_all_processes_have_as_many_micro_batches(rows, shares, micro):
    whole = {"ids": torch.arange(rows * 2).view(rows, 2), "counts": (torch.ones(rows, 2),)}
    cuts = [parallel.cut(whole, (share, shares), micro)["parts"] for share in range(shares)]
    counted = torch.cat([part["ids"] for parts in cuts for part, counts in parts if counts])
    assert torch.equal(counted, whole["ids"])
    assert len({len(parts) for parts in cuts}) == 1
    assert all(len(part["ids"]) <= (micro or rows) and len(part["ids"]) == len(part["counts"][0]) for parts in cuts for part, _ in parts)


def test_a_batch_that_is_one_part_is_handed_on_as_it_is():
    whole = (torch.ones(3, 2),)
    assert parallel.cut(whole, (0, 1), 8)["parts"][0][0] is whole


def test_tensors_with_other_numbers_of_rows_cannot_be_cut():
    with pytest.raises(BadInput, match=r"a batch's tensors have \[2, 3\] rows"):
        parallel.cut((torch.ones(2, 1), torch.ones(3)), (0, 2), None)


def test_processes_that_were_not_started_are_refused_with_the_command():
    with pytest.raises(BadInput, match=r"2 processes are asked for .* and 1 were started.*torch.distributed.run --nproc-per-node 2"):
        parallel.check(Resources(processes=2))
    with pytest.raises(BadInput, match="strategy=fsdp cuts the model over processes, and there is one"):
        parallel.check(Resources(strategy="fsdp"))


def test_heads_that_cannot_be_shared_out_and_unknown_architectures_are_refused():
    with pytest.raises(BadInput, match=r"each of 3 processes whole heads, and num_attention_heads=4, num_key_value_heads=4 is no multiple"):
        parallel._plan(Counting(parallel_run.OptimConfig(steps=2, batch_size=1, learning_rate=1, warmup_steps=0)).model, 3)
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(BadInput, match="does not know how to cut architecture 'gpt2'"):
        parallel._plan(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=8)), 2)


# ---------------------------------------------------------------- micro-batches


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_of_masked_rows_give_the_gradient_of_the_whole_batch(tmp_path, micro):
    """One plain SGD-like look at the gradient itself, against autograd on the whole batch."""
    module = Counting(parallel_run.OptimConfig(steps=1, batch_size=7, learning_rate=1e-9, warmup_steps=0, grad_clip_norm=1e9))
    expected = Counting(module.config)
    expected.training_step(batch(0, 7), 0)["loss"].backward()
    seen = {}
    clip = module.configure_gradient_clipping
    module.configure_gradient_clipping = lambda optimizer, **kw: (seen.update({n: p.grad.clone() for n, p in module.named_parameters()}), clip(optimizer, **kw))
    context = Context(seed=1, resources=Resources(accelerator="cpu", micro_batch_size=micro))
    fit(module, lambda i: batch(i, 7), 1, every=1, out=tmp_path, context=context, identity={})
    for name, p in expected.named_parameters():
        torch.testing.assert_close(seen[name], p.grad, rtol=1e-4, atol=1e-7)


def test_a_curve_with_micro_batches_is_the_curve_without(alone, tmp_path):
    _, losses, weights = alone
    course, module = train(tmp_path, {"micro_batch_size": 2}, {})
    assert course.losses == pytest.approx(losses, rel=1e-5)
    assert_same_weights(module.model.state_dict(), weights)


def test_weight_overrides_tokens_and_tokens_are_added_up(tmp_path):
    """A loss that is a mean over rows, of which micro-batches have 2, 2, 2 and 1, though they count other numbers of tokens."""

    class ByRow(Counting):
        def training_step(self, rows, step):
            out = super().training_step(rows, step)
            per_row = torch.stack([super(ByRow, self).training_step({k: v[i : i + 1] for k, v in rows.items()}, step)["loss"] for i in range(len(rows["ids"]))])
            return {"loss": per_row.mean(), "tokens": out["tokens"], "weight": len(rows["ids"])}

    def run(out, **resources):
        module = ByRow(parallel_run.OptimConfig(steps=3, batch_size=7, learning_rate=1e-2, warmup_steps=0))
        return fit(module, lambda i: batch(i, 7), 3, every=3, out=out, context=Context(seed=1, resources=Resources(accelerator="cpu", **resources)), identity={})

    whole, parts = run(tmp_path / "whole"), run(tmp_path / "parts", micro_batch_size=2)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    assert round(parts.tokens_per_s * parts.seconds) == sum(int(batch(i, 7)["counts"][:, 1:].sum()) for i in range(3))


# ---------------------------------------------------------------- processes


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_have_the_curve_of_one_and_their_checkpoint_goes_on_in_one(alone, strategy, tmp_path):
    folder, losses, weights = alone
    two = in_processes(tmp_path, strategy, config=KEEP_ALL, micro_batch_size=2)
    assert two["losses"] == pytest.approx(losses, rel=1e-5)
    assert heldout_losses(tmp_path) == pytest.approx(heldout_losses(folder), rel=1e-5) and len(heldout_losses(folder)) == 4
    assert best_checkpoint(tmp_path / "work") is not None and two["best"]["step"] in (2, 4, 6, 8)
    assert_same_weights(torch.load(tmp_path / "weights.pt"), weights)
    keep_only_step(tmp_path / "work", 4)
    notes = []
    context = Context(seed=1, emit=lambda e: notes.append(e.get("text")), resources=Resources(accelerator="cpu"))
    course, module = train(tmp_path, {}, KEEP_ALL, context=context)
    assert "resumed after step 4 of 8" in notes
    assert course.losses == pytest.approx(losses, rel=1e-5)
    assert_same_weights(module.model.state_dict(), weights)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_checkpoint_of_one_process_goes_on_in_two(alone, strategy, tmp_path):
    folder, losses, weights = alone
    shutil.copytree(folder, tmp_path / "out")
    keep_only_step(tmp_path / "out" / "work", 4)
    assert in_processes(tmp_path / "out", strategy, config=KEEP_ALL)["losses"] == pytest.approx(losses, rel=1e-5)
    assert_same_weights(torch.load(tmp_path / "out" / "weights.pt"), weights)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_averages_and_muon_are_the_same_in_two_processes(strategy, tmp_path):
    """Muon works in bf16, so rounding is coarser."""
    config = {"optimizer": "muon", "ema_decay": 0.9}
    course, module = train(tmp_path / "one", {}, config, look=True)
    two = in_processes(tmp_path / "two", strategy, config=config, activation_checkpointing=True)
    assert two["losses"] == pytest.approx(course.losses, rel=2e-3)
    assert heldout_losses(tmp_path / "two") == pytest.approx(heldout_losses(tmp_path / "one"), rel=2e-3)  # of the averages
    with module.averaged_weights():
        assert_same_weights(torch.load(tmp_path / "two" / "weights.pt"), module.model.state_dict(), tolerance=5e-3)
