"""Estimates from earlier records: what scales, with what, and what is said where nothing is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.cost.estimate import estimate, parameters_of
from components.schema.cost import Usage
from components.schema.jobs import Job, Run
from components.schema.records import Artifact, Record, folder_of

CPU, H200 = "Intel(R) Xeon(R) Processor", "8 x NVIDIA H200"
SHAPE = {"architecture": "llama", "hidden_size": 64, "layers": 2, "heads": 2, "intermediate_size": 128, "context_tokens": 128, "tie_embeddings": True, "extra": {}}
PARAMETERS = 100_000


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path))


def keep(stage: str, config: dict[str, Any], *, loop_s: float | None = None, device: str = CPU, inputs: dict[str, str] | None = None, attempts: int = 1, figures: dict[str, Any] | None = None, used: Usage | None = None, name: str = "a") -> Record:
    """A finished stage whose cost was kept: 100 s in all."""
    used = used or Usage(seconds=100, cpu_seconds=200, kwh=0.5, kwh_estimated=0.5, memory_mb=900)
    execution = {"cost": {"device": device, "attempts": attempts, "by_run": {"tiny-0": used.model_dump()}}, **({} if loop_s is None else {"seconds": loop_s})}
    identity = f"{stage}{name}".ljust(32, "0")
    record = Record(stage=stage, identity=identity, revision=1, config=config, inputs=inputs or {}, files={}, figures=figures or {}, execution=execution)
    folder = folder_of(stage, identity)
    folder.mkdir(parents=True)
    record.write(folder)
    return record


def pretraining(steps: int, **more: Any) -> dict[str, Any]:
    return {"model": SHAPE, "pretrain": {"steps": steps, "batch_size": 8, "batch_ramp": None, **more}, "seed": 0}


def job(stage: str, config: dict[str, Any], **inputs: str) -> Job:
    return Job(stage=stage, config=config, inputs={name: Artifact(path="", identity=identity) for name, identity in inputs.items()}, run=Run())


def test_a_loop_is_scaled_by_tokens_and_parameters_and_what_surrounds_it_stays() -> None:
    keep("pretrain", pretraining(100), loop_s=80, figures={"parameters": PARAMETERS})
    thrice = estimate(job("pretrain", pretraining(300)), PARAMETERS, CPU)
    expected = Usage(seconds=260, cpu_seconds=520, kwh=1.3, kwh_estimated=1.3, memory_mb=900)  # 20 s around it and 3 x 80 s in it
    assert thrice.used.model_dump(exclude={"gpu_seconds"}) == pytest.approx(expected.model_dump(exclude={"gpu_seconds"}))
    assert "pretrain-pretraina0000000: 3 times its work" == thrice.source
    assert estimate(job("pretrain", pretraining(100)), 5 * PARAMETERS, CPU).used.seconds == pytest.approx(20 + 5 * 80)


def test_growing_batches_are_counted_as_they_grow() -> None:
    """4 steps of 1, 4 of 2, 4 of 4, then 88 of 8: 732 sequences instead of 800."""
    keep("pretrain", pretraining(100), loop_s=100, figures={"parameters": PARAMETERS})
    ramped = estimate(job("pretrain", pretraining(100, batch_ramp={"base": 1, "interval_steps": 4})), PARAMETERS, CPU)
    assert ramped.used.seconds == pytest.approx(100 * 732 / 800)


def test_the_run_nearest_in_work_is_taken_and_this_device_before_another() -> None:
    keep("pretrain", pretraining(10), loop_s=100, figures={"parameters": PARAMETERS}, name="b")
    keep("pretrain", pretraining(1000), loop_s=100, figures={"parameters": PARAMETERS}, name="c")
    assert "pretrain-pretrainc" in estimate(job("pretrain", pretraining(900)), PARAMETERS, CPU).source
    keep("pretrain", pretraining(900), loop_s=100, figures={"parameters": PARAMETERS}, name="d", device="AMD EPYC")
    assert "pretrain-pretrainc" in estimate(job("pretrain", pretraining(900)), PARAMETERS, CPU).source
    assert "pretrain-pretraind" in (other := estimate(job("pretrain", pretraining(900)), PARAMETERS, "AMD EPYC")).source and "another device" not in other.source


def test_a_processor_does_not_tell_what_gpus_will_take() -> None:
    keep("pretrain", pretraining(100), figures={"parameters": PARAMETERS})
    found = estimate(job("pretrain", pretraining(100)), PARAMETERS, H200)
    assert found.used is None and found.source == f"it ran on {CPU} only, and this is {H200}"


def test_a_later_stage_knows_its_model_by_the_pretraining_behind_it() -> None:
    base = keep("pretrain", pretraining(100), figures={"parameters": PARAMETERS})
    chat = keep("sft", {"sft": {"steps": 10, "batch_size": 4}}, inputs={"base": base.identity}, loop_s=100)
    keep("reward", {"reward": {"steps": 10, "batch_size": 4}}, inputs={"chat": chat.identity}, loop_s=50)
    found = estimate(job("reward", {"reward": {"steps": 20, "batch_size": 8}}), 2 * PARAMETERS, CPU)
    assert found.used.seconds == pytest.approx(50 + 50 * 8)


def test_a_cut_off_attempt_tells_no_loop_so_all_of_it_is_scaled() -> None:
    keep("pretrain", pretraining(100), loop_s=10, attempts=2, figures={"parameters": PARAMETERS})
    assert estimate(job("pretrain", pretraining(200)), PARAMETERS, CPU).used.seconds == pytest.approx(200)


def test_of_a_stage_that_was_cut_off_only_the_rest_is_to_come() -> None:
    keep("pretrain", pretraining(100), loop_s=80, figures={"parameters": PARAMETERS})
    asked = job("pretrain", pretraining(200))
    work = asked.folder.with_name(asked.folder.name + ".partial") / "work"
    work.mkdir(parents=True)
    (work / "step-00000150-0123.ckpt").touch()
    found = estimate(asked, PARAMETERS, CPU)
    assert found.used.seconds == pytest.approx(20 + 80 * 2 / 4) and found.source.endswith("2 times its work; goes on after 150 of 200")


@pytest.mark.parametrize(
    ("asked", "before", "times"),
    [
        ({"suites": ["a", "b"]}, {"limit": None}, 1.0),
        ({"suites": ["a"]}, {"limit": None}, 0.25),
        ({"suites": ["a", "b"], "limit": 10}, {"limit": None}, 20 / 400),
        ({"suites": ["a", "b"], "limit": 20}, {"limit": 10}, 2.0),
        ({"suites": ["a", "b"]}, {"limit": 10}, None),  # how many items there are beyond the limit is not known
        ({"suites": ["a", "c"]}, {"limit": None}, None),
    ],
)
def test_an_evaluation_is_scaled_by_its_items(asked: dict[str, Any], before: dict[str, Any], times: float | None) -> None:
    base = keep("pretrain", pretraining(100), figures={"parameters": PARAMETERS})
    scores = {"base": {"a": {"items": 100}, "b": {"items": 300}}}
    keep("evaluate", {"evals": {"suites": ["a", "b"], **before}}, inputs={"base": base.identity}, figures={"scores": scores})
    found = estimate(job("evaluate", {"evals": asked}, base="x"), PARAMETERS, CPU)
    assert (found.used and found.used.seconds) == (times and pytest.approx(100 * times))
    assert times or found.source == "no earlier evaluate with the same suites"


def test_nothing_known_is_said_so() -> None:
    assert estimate(job("sft", {"sft": {"steps": 1, "batch_size": 1}}), PARAMETERS, CPU).source == "no earlier sft here whose cost was kept"
    keep("pretrain", pretraining(100), figures={"parameters": PARAMETERS})
    assert estimate(job("pretrain", pretraining(100)), None, CPU).source == "the model's size is not known before its weights are here"


def test_data_is_taken_as_it_was_for_a_dataset_of_the_same_name() -> None:
    keep("data", {"name": "tiny"})
    assert estimate(job("data", {"data": {"name": "tiny"}}), None, CPU).used.seconds == 100
    assert estimate(job("data", {"data": {"name": "open"}}), None, CPU).used is None


def test_a_models_size_is_that_of_an_earlier_model_of_its_shape_or_else_counted() -> None:
    jobs = {"pretrain": job("pretrain", pretraining(7))}
    counted = 2 * (4 * 64 * 64 + 3 * 64 * 128) + 400 * 64
    assert parameters_of(jobs, 400) == counted
    keep("pretrain", pretraining(100), figures={"parameters": counted + 320})  # with its norms
    assert parameters_of(jobs, 400) == counted + 320
    assert parameters_of(jobs, 4000) == counted + 3600 * 64  # another vocabulary, another model
