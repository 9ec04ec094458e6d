"""What a training tells, what stops it, and what changes its speed but not its result."""

import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import Logger

from components.schema.config import BadInput
from components.schema.recipe import Resources
from components.training.trainer import Context, Looks
from components.training.watch import NATS, WINDOW, Clock, Divergence

from . import parallel_run
from .parallel_run import Counting, batch, train


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def context(**resources) -> Context:
    return Context(seed=1, resources=Resources(accelerator="cpu", **resources))


# ---------------------------------------------------------------- what stops it


def fed(losses):
    judge = Divergence()
    return [judge.sees(loss) for loss in losses]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_seen_at_once(loss):
    assert fed([3.0, loss]) == [None, f"the loss is {loss}"]


def test_spikes_noise_and_steady_learning_are_no_divergence():
    spiky = [5.0 - i / 200 + (20 if i % 3 == 0 else 0) for i in range(600)]
    assert not any(fed(spiky))


def test_a_loss_that_rises_and_stays_is_seen_within_half_a_window():
    seen = fed([9.0 - i / 20 for i in range(120)] + [9.0] * WINDOW)
    first = next(i for i, wrong in enumerate(seen) if wrong)
    assert 120 < first <= 120 + WINDOW // 2 + 1
    assert "the loss diverged: the median of the last 32 steps is" in seen[first]


def test_a_rise_below_the_limit_goes_on():
    assert not any(fed([4.0] * 50 + [4.0 + NATS - 0.1] * 100))


def test_the_judge_remembers_over_a_resume_what_it_had_seen():
    losses = [4.0] * 60 + [8.0] * 40
    whole = fed(losses)
    first, second = Divergence(), Divergence()
    seen = [first.sees(loss) for loss in losses[:70]]
    second.load(json.loads(json.dumps(first.state())))
    assert seen + [second.sees(loss) for loss in losses[70:]] == whole


def test_a_run_that_is_lost_keeps_its_batch_and_the_checkpoint_before_it(tmp_path, monkeypatch):
    def spoilt(self, rows, step):
        out = original(self, rows, step)
        return {**out, "loss": out["loss"] * (math.nan if step == 5 else 1)}

    original = Counting.training_step
    monkeypatch.setattr(Counting, "training_step", spoilt)
    with pytest.raises(BadInput, match=r"the loss is nan at step 6 of 8: the weights are lost\. Lower learning_rate.*bad-batch-6\.pt.*the checkpoint before it is step-00000004"):
        train(tmp_path, {"micro_batch_size": 2}, {})
    kept = torch.load(tmp_path / "work" / "bad-batch-6.pt", weights_only=True)
    assert torch.equal(kept["ids"], batch(5, 7)["ids"])
    assert [path.name[:13] for path in (tmp_path / "work").glob("*.ckpt")] == ["step-00000004"]


def test_with_skip_spikes_a_loss_that_is_no_number_costs_its_step_and_not_the_run(tmp_path, monkeypatch):
    def spoilt(self, rows, step):
        out = original(self, rows, step)
        return {**out, "loss": out["loss"] * (math.nan if step == 5 else 1)}

    original = Counting.training_step
    monkeypatch.setattr(Counting, "training_step", spoilt)
    course = train(tmp_path, {"micro_batch_size": 2}, {"skip_spikes": 10.0})[0]
    assert [i for i, loss in enumerate(course.losses) if not math.isfinite(loss)] == [5] and len(course.losses) == 8


def test_fp16_on_a_cpu_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(BadInput, match="precision=fp16 needs a GPU"):
        train(tmp_path, {}, {"precision": "fp16"})
    assert not (tmp_path / "work").exists()


# ---------------------------------------------------------------- what is told


class Remembering(Logger):
    name, version = "remembering", "0"

    def __init__(self):
        super().__init__()
        self.told = []

    def log_metrics(self, metrics, step=None):
        self.told.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def test_the_logger_hears_speed_and_where_the_time_goes(tmp_path):
    logger = Remembering()
    train(tmp_path, {}, {}, context=Context(seed=1, loggers=[logger], resources=Resources(accelerator="cpu")), log_every=2)
    assert [step for step, _ in logger.told] == [1, 3, 5, 7]
    for _, told in logger.told:
        assert {"loss", "grad_norm", "lr", "tokens_per_s", "share_of_peak"} <= told.keys()
        assert sum(share for name, share in told.items() if name.startswith("time/")) == pytest.approx(1)
        assert {"time/data", "time/forward", "time/backward", "time/optimizer", "time/rest"} <= told.keys()


def test_tokens_are_counted_over_a_resume_so_that_curves_can_be_drawn_against_them(tmp_path):
    def fails_at_6(step):
        if step == 6:
            raise KeyboardInterrupt

    first, second = Remembering(), Remembering()
    with pytest.raises(SystemExit):
        train(tmp_path, {}, {}, log_every=1, looks=Looks(validate=lambda step: fails_at_6(step) or {}, validate_every=2),
              context=Context(seed=1, loggers=[first], resources=Resources(accelerator="cpu")))  # fmt: skip
    train(tmp_path, {}, {}, log_every=1, looks=Looks(validate=lambda step: {}, validate_every=2), context=Context(seed=1, loggers=[second], resources=Resources(accelerator="cpu")))
    told = {step: numbers["tokens"] for step, numbers in (*first.told, *second.told)}
    read = [int(batch(step, 3 if step < 4 else 7)["counts"][:, 1:].sum()) for step in range(8)]
    assert told == {step: sum(read[: step + 1]) for step in range(8)}


def test_a_course_tells_how_the_time_was_spent(tmp_path):
    course, _ = train(tmp_path, {}, {})
    told = course.execution()
    assert {"seconds", "tokens_per_s", "share_of_peak", "time_share_forward", "checkpoint_wait_seconds"} <= told.keys()
    assert 0 < told["share_of_peak"] < 1.5


def test_the_clock_adds_up_what_lies_between_marks(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 4.0, 10.0])
    monkeypatch.setattr("components.training.watch.time.perf_counter", lambda: next(ticks))
    clock = Clock(torch.device("cpu"))
    clock.restart()
    for what in ("data", "forward"):
        clock.mark(what)
    clock.read()
    for what in ("rest", "data"):
        clock.mark(what)
    clock.read()
    assert clock.seconds == {"data": 7.0, "forward": 2.0, "rest": 1.0}


def test_validation_and_samples_are_written_once_whenever_the_run_was_killed(tmp_path):
    def looks(seen):
        def validate(step):
            seen.append(step)
            if step == 6 and seen.count(6) == 1 and fails:
                raise KeyboardInterrupt
            return {"heldout_loss": 1 / step, "heldout_loss/code": 2.0}

        return Looks(validate=validate, validate_every=2, sample=lambda step: [f"text {step}"], sample_every=3)

    fails = []
    _, whole = train(tmp_path / "whole", {}, {}, looks=looks([]))
    fails, seen = [True], []
    with pytest.raises(SystemExit):
        train(tmp_path / "parts", {}, {}, looks=looks(seen))
    _, parts = train(tmp_path / "parts", {}, {}, looks=looks(seen))
    for name in ("curve.jsonl", "samples.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    curve = lines(tmp_path / "whole" / "curve.jsonl")
    assert [row["step"] for row in curve] == list(range(1, 9))
    assert [row["step"] for row in curve if "heldout_loss" in row] == [2, 4, 6, 8] and curve[3]["heldout_loss/code"] == 2.0
    assert lines(tmp_path / "whole" / "samples.jsonl") == [{"step": 3, "sample": "text 3"}, {"step": 6, "sample": "text 6"}]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_looking_changes_no_bit_even_where_it_draws_numbers_and_sets_modes(tmp_path):
    _, plain = train(tmp_path / "plain", {}, {}, dropout=0.3)
    holder = {}

    def validate(step):
        torch.rand(step)
        holder["module"].eval()
        return {"heldout_loss": 1.0}

    build = Counting.__init__

    def remember(self, *args, **kwargs):
        build(self, *args, **kwargs)
        holder["module"] = self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Counting, "__init__", remember)
        _, looked = train(tmp_path / "looked", {}, {}, dropout=0.3, looks=Looks(validate=validate, validate_every=1))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), looked.parameters(), strict=True))


def test_validation_sees_the_averaged_weights_and_training_goes_on_with_its_own(tmp_path):
    seen, holder = [], {}
    build = Counting.__init__

    def remember(self, *args, **kwargs):
        build(self, *args, **kwargs)
        holder["module"] = self

    def validate(step):
        seen.append(holder["module"].model.lm_head.weight.detach().clone())
        return {"heldout_loss": 1.0}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Counting, "__init__", remember)
        _, module = train(tmp_path, {}, {"ema_decay": 0.9}, looks=Looks(validate=validate, validate_every=8))
    assert not torch.equal(seen[0], module.model.lm_head.weight)
    with module.averaged_weights():
        assert torch.equal(seen[0], module.model.lm_head.weight)


# ---------------------------------------------------------------- what changes speed, not results


def test_activation_checkpointing_changes_no_bit_with_dropout_on_and_is_off_afterwards(tmp_path):
    plain, expected = train(tmp_path / "plain", {}, {}, dropout=0.3)
    course, module = train(tmp_path / "checkpointed", {"activation_checkpointing": True}, {}, dropout=0.3)
    assert course.losses == plain.losses
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))
    assert not module.model.is_gradient_checkpointing


def test_bf16_follows_fp32_and_its_weights_stay_fp32(tmp_path):
    plain, _ = train(tmp_path / "fp32", {}, {})
    course, module = train(tmp_path / "bf16", {}, {"precision": "bf16"})
    assert course.losses != plain.losses
    assert course.losses == pytest.approx(plain.losses, rel=0.02)
    assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.slow
def test_a_compiled_training_has_the_same_curve_names_and_reports_its_cost(tmp_path):
    plain, expected = train(tmp_path / "plain", {}, {}, ramp=False)
    course, module = train(tmp_path / "compiled", {"compile": True}, {}, ramp=False)
    assert course.losses == pytest.approx(plain.losses, rel=1e-4)
    assert list(module.state_dict()) == list(expected.state_dict())
    assert course.execution()["compile_seconds"] > 0
    assert all(block._compiled_call_impl is None for block in module.model.model.layers)


def test_the_process_that_is_not_the_first_measures_and_writes_nothing(tmp_path, monkeypatch):
    from components.training.trainer import remembered

    monkeypatch.setenv("RANK", "1")
    assert remembered(tmp_path, "before", lambda: pytest.fail("measured")) == {}
    assert not list(tmp_path.iterdir())


def test_what_takes_its_own_steps_is_refused_in_several_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    build = Counting.__init__

    def manual(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.automatic_optimization = False

    monkeypatch.setattr(Counting, "__init__", manual)
    with pytest.raises(BadInput, match="Counting takes its own steps, and only in one process"):
        parallel_run.train(tmp_path, {"processes": 2}, {})
