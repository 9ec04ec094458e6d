"""Killed at any step and started again, a run ends with the same bits and the same figures."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from components.schema.config import BadInput
from components.training import trainer
from components.training.trainer import Context, Looks
from components.training.watch import Watch

from . import parallel_run

STAGES = ["pretrain", "sft", "reward", "ppo"]


class Killed(BaseException):
    """Stands for the end of the process."""


def interrupt_at(monkeypatch, step):
    """Die when step number `step` (from 0) is about to start."""
    original = Watch.on_train_batch_start

    def die(self, lightning, module, batch, batch_idx):
        if batch_idx == step:
            raise Killed
        original(self, lightning, module, batch, batch_idx)

    monkeypatch.setattr(Watch, "on_train_batch_start", die)


def outputs(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def in_one_go(line, stage):
    folder = line.folder / f"{stage}-in-one-go"
    if not folder.exists():
        line.whole = {**getattr(line, "whole", {}), stage: line.run(stage, folder, Context(seed=5))}
    return folder, line.whole[stage]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_run_killed_before_any_step_ends_with_the_same_bits_and_figures(line, stage, step, tmp_path, monkeypatch):
    folder, whole = in_one_go(line, stage)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step if stage == "ppo" else 2 * step)
        with pytest.raises(Killed):
            line.run(stage, tmp_path, Context(seed=5))
    assert not (tmp_path / "model.safetensors").exists()
    again = line.run(stage, tmp_path, Context(seed=5))
    assert outputs(tmp_path) == outputs(folder)
    assert again.figures == whole.figures
    assert again.samples == whole.samples


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_while_it_saves_its_model_trains_no_step_again(line, stage, tmp_path, monkeypatch):
    folder, whole = in_one_go(line, stage)
    module = sys.modules[f"components.training.{stage}"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "save", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            line.run(stage, tmp_path, Context(seed=5))
    monkeypatch.setattr(trainer, "_run_trainer", lambda *_: pytest.fail("trained again"))
    again = line.run(stage, tmp_path, Context(seed=5))
    assert outputs(tmp_path) == outputs(folder)
    assert again.figures == whole.figures


def test_a_run_killed_again_and_again_still_ends_the_same(line, tmp_path, monkeypatch):
    folder, _ = in_one_go(line, "sft")
    for step in (5, 6, 9):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            with pytest.raises(Killed):
                line.run("sft", tmp_path, Context(seed=5))
    line.run("sft", tmp_path, Context(seed=5))
    assert outputs(tmp_path) == outputs(folder)


def test_dropout_draws_the_same_numbers_after_a_resume(line, tmp_path, monkeypatch):
    line = type(line)(tmp_path / "line", line.tokenizer, line.tokens, line.chats, line.preferences,
                      line.model.model_copy(update={"architecture": "gpt2", "extra": {"resid_pdrop": 0.3}}))  # fmt: skip
    line.run("pretrain", tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(Killed):
            line.run("pretrain", tmp_path / "parts")
    line.run("pretrain", tmp_path / "parts")
    assert outputs(tmp_path / "parts") == outputs(tmp_path / "whole")


def test_two_checkpoints_are_kept_and_a_damaged_newest_one_gives_way_to_the_older(line, tmp_path, monkeypatch):
    folder, _ = in_one_go(line, "pretrain")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9)
        with pytest.raises(Killed):
            line.run("pretrain", tmp_path, Context(seed=5))
    older, newest = sorted((tmp_path / "work").glob("step-*.ckpt"))
    assert (older.name[:13], newest.name[:13]) == ("step-00000004", "step-00000008")
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # one flipped bit
    newest.write_bytes(damaged)
    notes = []
    line.run("pretrain", tmp_path, Context(seed=5, emit=lambda e: notes.append(e.get("text", ""))))
    assert any(f"{newest.name} is damaged" in note for note in notes)
    assert "resumed after step 4 of 10" in notes
    assert outputs(tmp_path) == outputs(folder)


def test_a_half_written_checkpoint_is_not_taken_for_one(line, tmp_path, monkeypatch):
    folder, _ = in_one_go(line, "pretrain")
    (tmp_path / "work").mkdir(parents=True)
    (tmp_path / "work" / "checkpoint.tmp").write_bytes(b"half")
    line.run("pretrain", tmp_path, Context(seed=5))
    assert outputs(tmp_path) == outputs(folder)


def test_a_work_folder_of_another_run_is_refused(line, tmp_path):
    line.run("pretrain", tmp_path, Context(seed=5))
    with pytest.raises(BadInput, match="left by a run with other config: going on from it would mix two experiments"):
        line.run("pretrain", tmp_path, Context(seed=5), learning_rate=1e-3)
    with pytest.raises(BadInput, match="with other seed"):
        line.run("pretrain", tmp_path, Context(seed=6))


# ---------------------------------------------------------------- real processes


KILLED = """
import sys, time, torch
from pathlib import Path
from components.training.trainer import Looks
from tests.training.parallel_run import train
import json
torch.set_num_threads(1)
plan = json.loads(sys.argv[2])
course, module = train(Path(sys.argv[1]), {"micro_batch_size": 3}, plan, dropout=0.2, looks=Looks(validate=lambda step: time.sleep(0.02) or {"heldout_loss": 1 / step}, validate_every=1))
with module.averaged_weights():
    torch.save(module.model.state_dict(), Path(sys.argv[1]) / "weights.pt")
"""
PLANS = {"adamw": {"optimizer": "adamw"}, "muon with averages": {"optimizer": "muon", "ema_decay": 0.95, "skip_spikes": 20}}


def killable(out: Path, plan: dict) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", KILLED, out, json.dumps(plan)], cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"})


def steps_written(out: Path) -> list[int]:
    path = out / "work" / "curve.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def kill_at(out: Path, plan: dict, step: int) -> None:
    """SIGKILL once this step has been written down."""
    with killable(out, plan) as process:
        end = time.monotonic() + 100
        while (steps_written(out) or [0])[-1] < step:
            assert process.poll() is None and time.monotonic() < end, f"it ended before step {step}"
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def assert_killing_changes_nothing(folder: Path, plan: dict, kills: list[int]) -> None:
    for step in kills:
        kill_at(folder / "parts", plan, step)
    with killable(folder / "parts", plan) as process:
        assert process.wait() == 0
    looks = Looks(validate=lambda step: {"heldout_loss": 1 / step}, validate_every=1)
    _, whole = parallel_run.train(folder / "whole", {"micro_batch_size": 3}, plan, dropout=0.2, looks=looks)
    parts = torch.load(folder / "parts" / "weights.pt")
    with whole.averaged_weights():
        assert all(torch.equal(parts[name], value) for name, value in whole.model.state_dict().items())
    assert (folder / "parts" / "curve.jsonl").read_bytes() == (folder / "whole" / "curve.jsonl").read_bytes()
    assert [json.loads(line)["step"] for line in (folder / "parts" / "curve.jsonl").read_text().splitlines()] == list(range(1, plan["steps"] + 1))


def test_killed_twice_with_dropout_muon_and_averages_it_ends_with_the_same_bits_and_each_step_once(tmp_path):
    assert_killing_changes_nothing(tmp_path, {**PLANS["muon with averages"], "steps": 30, "checkpoint_every_steps": 4}, [6, 17])


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
def test_killed_at_ten_random_steps_it_ends_with_the_same_bits_and_each_step_once(plan, tmp_path):
    kills = sorted(random.Random(plan).sample(range(2, 95), 10))
    assert_killing_changes_nothing(tmp_path, {**PLANS[plan], "steps": 100, "checkpoint_every_steps": 3}, kills)


CHILD = """
import signal, sys, torch
from pathlib import Path
from components.schema.training import ModelConfig, PretrainConfig
from components.training import pretrain
from components.training.trainer import Context, Looks
from components.training.watch import Watch
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that a shell started in the background ignore it
torch.set_num_threads(1)
*paths, steps = sys.argv[1:]
tokens, tokenizer, out = map(Path, paths)
model = ModelConfig(hidden_size=16, layers=2, heads=2, intermediate_size=32, context_tokens=32)
config = PretrainConfig(steps=int(steps), batch_size=4, learning_rate=1e-2, warmup_steps=2, checkpoint_every_steps=5)
pretrain.run(config, model, tokens, tokens.parent / "mix", tokenizer, out, Context(seed=5))
"""


def child(line, out, steps=200):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, line.tokens, line.tokenizer, out, str(steps)], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_checkpoint(process, work):
    end = time.monotonic() + 60
    while not list(work.glob("step-*.ckpt")):
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < end, "no checkpoint within a minute"
        time.sleep(0.01)


def test_a_real_kill_and_a_real_restart_end_with_the_same_bits(line, tmp_path):
    parts = tmp_path / "parts"
    with child(line, parts) as victim:
        wait_for_checkpoint(victim, parts / "work")
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
    assert not (parts / "model.safetensors").exists()
    with child(line, parts) as second:
        assert second.stdout.read() == b"" and second.wait() == 0  # and no console noise
    line.run("pretrain", tmp_path / "whole", Context(seed=5), steps=200, checkpoint_every_steps=5)
    assert outputs(parts) == outputs(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_and_never_counts_as_success(line, tmp_path, number):
    with child(line, tmp_path, steps=2000) as process:  # far from done when the signal comes, however busy the machine
        wait_for_checkpoint(process, tmp_path / "work")
        process.send_signal(number)
        assert process.wait(timeout=120) == {signal.SIGTERM: 143, signal.SIGINT: 1}[number]
    assert not (tmp_path / "model.safetensors").exists()
