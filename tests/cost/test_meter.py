"""The meter of a stage: real processes that use real time, and counters whose answers are known."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.cost import ledger
from components.cost.meter import Machine, Meter
from components.schema.cost import JOULES_PER_KWH, Usage

ROOT = Path(__file__).parents[2]
BURN = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"


class Counter:
    """Joules that were used, each time it is asked."""

    def __init__(self, *joules: float | None) -> None:
        self.left = list(joules)
        self.names = ["NVIDIA H200"]

    def joules(self) -> float | None:
        return self.left.pop(0) if self.left else 0.0

    def memory_mb(self) -> float:
        return 2048.0


def burn(seconds: float) -> None:
    subprocess.run([sys.executable, "-c", BURN.format(seconds=seconds)], check=True)


def test_time_of_processes_below_counts_also_when_they_have_ended(tmp_path: Path) -> None:
    before = os.times()
    with Meter(tmp_path, "r", Machine(watts_per_core=20), every_s=0.1) as meter:
        first = meter.used.cpu_seconds
        burn(0.4)
    after = os.times()
    really = sum(after[i] - before[i] for i in range(4))
    assert meter.used.cpu_seconds - first == pytest.approx(really, abs=0.1)
    assert meter.used.kwh == meter.used.kwh_estimated == pytest.approx(meter.used.cpu_seconds * 20 / JOULES_PER_KWH)
    assert meter.used.energy == "estimated"
    assert meter.used.memory_mb > 10


def test_of_a_processors_counter_a_stage_gets_no_more_than_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 s that cores were busy 4 were ours: 40 % of 500 J."""
    ours, all_busy = iter([0.0, 4.0]), iter([100.0, 100.0, 110.0])
    monkeypatch.setattr("components.cost.meter._tree", lambda process: (next(ours), 50.0))
    monkeypatch.setattr("components.cost.meter._machine_busy", lambda: next(all_busy))
    with Meter(tmp_path, "r", Machine(rapl=Counter(0.0, 500.0)), every_s=60) as meter:
        pass
    assert meter.used.kwh == pytest.approx(200 / JOULES_PER_KWH)
    assert meter.used.kwh_estimated == 0.0


def test_a_gpu_that_tells_nothing_is_estimated_and_the_rest_stays_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.cost.meter._tree", lambda process: (0.0, 50.0))
    with Meter(tmp_path, "r", Machine(gpus=Counter(0.0, 3600.0)), every_s=60) as told:
        pass
    with Meter(tmp_path, "r", Machine(gpus=Counter(None, None), watts_per_gpu=400), every_s=60) as silent:
        time.sleep(0.05)
    assert told.used.kwh == pytest.approx(0.001) and told.used.kwh_estimated == 0
    assert silent.used.kwh == silent.used.kwh_estimated == pytest.approx(silent.used.seconds * 400 / JOULES_PER_KWH)
    assert silent.used.gpu_seconds == {"NVIDIA H200": silent.used.seconds}
    assert silent.used.gpu_memory_mb == 2048


def test_other_machines_of_a_stage_count_as_much_and_as_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.cost.meter._tree", lambda process: (0.0, 50.0))
    with Meter(tmp_path, "r", Machine(gpus=Counter(0.0, 3600.0), nodes=3), every_s=60) as meter:
        pass
    assert meter.used.kwh == pytest.approx(0.003)
    assert meter.used.kwh_estimated == pytest.approx(0.002)
    assert meter.used.gpu_seconds["NVIDIA H200"] == pytest.approx(3 * meter.used.seconds)


def test_what_a_killed_attempt_used_is_in_the_ledger(tmp_path: Path) -> None:
    """A real process, killed without a word while it works."""
    code = f"from pathlib import Path\nfrom components.cost.meter import Machine, Meter\nwith Meter(Path({str(tmp_path)!r}), 'mine', Machine(), every_s=0.1):\n    print('on', flush=True)\n    " + BURN.format(seconds=30).replace("\n", "\n    ")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "on\n"
        first = ledger.by_run(tmp_path)["mine"].cpu_seconds
        deadline = time.monotonic() + 30
        while ledger.by_run(tmp_path)["mine"].cpu_seconds < first + 0.3 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = ledger.by_run(tmp_path)["mine"]
    assert kept.cpu_seconds >= first + 0.3
    ledger.write(tmp_path, "next", "mine", Usage(cpu_seconds=5))
    ledger.write(tmp_path, "another", "theirs", Usage(cpu_seconds=7))
    assert ledger.by_run(tmp_path)["mine"].cpu_seconds == pytest.approx(kept.cpu_seconds + 5)
    assert ledger.by_run(tmp_path, but="next")["theirs"].cpu_seconds == 7
    assert ledger.attempts(tmp_path) == 3


def test_a_ledger_that_was_cut_off_counts_nothing_and_stops_nobody(tmp_path: Path) -> None:
    ledger.write(tmp_path, "whole", "mine", Usage(cpu_seconds=5))
    (tmp_path / ledger.FOLDER / "half.json").write_text('{"run": "mine", "us')
    assert ledger.by_run(tmp_path) == {"mine": Usage(cpu_seconds=5)}
