"""What the exporter says of stages at work and of devices, from answers as MLflow and NVML give them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from components.cost.energy import held_gpus
from flows.exported.devices import Devices
from flows.exported.tracker import Tracker
from flows.exported.training import Training
from tests.cost.test_energy import Driver
from tests.flows.test_exporter import _Only, text


class Known(Tracker):
    """An MLflow that has these runs."""

    def __init__(self, *runs: dict[str, Any]) -> None:
        super().__init__("http://known")
        self.runs = runs

    def stages(self, wanted: str, order_by: Any = ()) -> Iterator[dict[str, Any]]:
        assert wanted == "attributes.status = 'RUNNING'"
        yield from self.runs


def run(stage: str, params: dict[str, str], age_s: float = 5.0, **metrics: tuple[Any, int]) -> dict[str, Any]:
    """A run as runs/search gives it; metrics are (value, step), the last one `age_s` old."""
    at = int((time.time() - age_s) * 1000)
    tags = {"modelyard.stage": stage, "modelyard.recipe": "mine", "modelyard.stage_identity": f"{stage:0<32}"}
    return {
        "info": {"run_id": "r", "start_time": at - 60_000},
        "data": {
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
            "params": [{"key": key, "value": value} for key, value in params.items()],
            "metrics": [{"key": key.replace("__", "/"), "value": value, "step": step, "timestamp": at} for key, (value, step) in metrics.items()],
        },
    }


def told(*runs: dict[str, Any]) -> dict[str, float]:
    return text(_Only(Training(Known(*runs)).collect()))


def test_a_stage_at_work_tells_its_loss_its_speed_and_how_far_it_is() -> None:
    found = told(run("pretrain", {"model.layers": "4", "pretrain.steps": "1700"}, loss=(2.5, 849), tokens_per_s=(11000.0, 849), system__stage_memory_usage_megabytes=(865.5, 60)))
    labels = '{recipe="mine",run="pretrain",stage="pretrain"}'
    assert found[f"modelyard_training_loss{labels}"] == 2.5
    assert found[f"modelyard_training_step{labels}"] == 850 and found[f"modelyard_training_steps{labels}"] == 1700
    assert found[f"modelyard_stage_memory_bytes{labels}"] == pytest.approx(865.5e6)
    assert 4 < time.time() - found[f"modelyard_training_step_timestamp_seconds{labels}"] < 60


def test_alignment_counts_iterations_and_a_stage_that_does_not_train_has_no_steps() -> None:
    found = told(run("ppo", {"align.iterations": "16", "align.warmup_steps": "5"}, loss=(0.01, 3)), run("evaluate", {"evals.limit": "100"}))
    assert found['modelyard_training_steps{recipe="mine",run="ppo00000",stage="ppo"}'] == 16
    assert 'modelyard_training_steps{recipe="mine",run="evaluate",stage="evaluate"}' not in found
    assert 'modelyard_stage_began_timestamp_seconds{recipe="mine",run="evaluate",stage="evaluate"}' in found


def test_a_stage_that_has_not_logged_yet_stands_at_step_0() -> None:
    assert told(run("sft", {"sft.steps": "30"}))['modelyard_training_step{recipe="mine",run="sft00000",stage="sft"}'] == 0


def test_a_loss_that_is_no_number_arrives_as_such() -> None:
    assert math.isnan(told(run("sft", {}, loss=("NaN", 7)))['modelyard_training_loss{recipe="mine",run="sft00000",stage="sft"}'])


def test_a_run_that_was_left_behind_days_ago_is_not_at_work() -> None:
    assert told(run("sft", {"sft.steps": "30"}, age_s=3 * 86400, loss=(1.0, 3))) == {}


class Telling(Driver):
    """The same two GPUs and a slice, which also tell what they do."""

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> object:
        return type("Memory", (), {"used": 40 * 2**30, "total": 80 * 2**30})

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> object:
        self._known(self.milliwatts, handle)
        return type("Rates", (), {"gpu": 93, "memory": 20})

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return self._known({"GPU-a": 700_000, "GPU-b": 700_000}, handle)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        assert sensor == 0
        return self._known({"GPU-a": 61, "GPU-b": 64}, handle)


def test_each_gpu_tells_what_it_does_by_the_name_of_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_GPUS", "0,1")
    found = text(_Only(Devices(held_gpus("auto", 2, {}, Telling()), ("0", "1")).collect()))
    name = next(key for key in found if key.startswith("modelyard_gpu_busy_share"))
    assert found[name] == 0.93 and 'device="0"' in name
    watts = {key: value for key, value in found.items() if key.startswith("modelyard_gpu_power_watts")}
    assert list(watts.values()) == [300, 250] and sum('device="1"' in key for key in watts) == 1
    assert found['modelyard_device_held{device="0",kind="gpu"}'] == 0


def test_a_machine_without_gpus_tells_of_its_processor_alone() -> None:
    found = text(_Only(Devices(None, ()).collect()))
    assert not [key for key in found if key.startswith("modelyard_gpu")]
    assert 0 <= found["modelyard_machine_cpu_share"] <= 1 and found["modelyard_machine_memory_bytes"] > found["modelyard_machine_memory_used_bytes"] > 0
