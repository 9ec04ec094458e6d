"""Checkpoints are whole or not there, checked before use, of one size whatever the step, and written beside training."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from components.schema.config import BadInput
from components.schema.recipe import Resources
from components.schema.records import file_md5
from components.training import checkpoints
from components.training.checkpoints import Writer, best_checkpoint, is_whole, load, newest_checkpoint, on_host, step_of
from components.training.curve import Lines
from components.training.trainer import Context, Looks

from .parallel_run import train


def files(out: Path) -> list[Path]:
    return sorted((out / "work").glob("step-*.ckpt"))


def write(folder: Path, step: int, state=None) -> Path:
    writer = Writer()
    writer.save_checkpoint(state or {"weights": torch.arange(1000.0)}, folder / f"step-{step:08d}")
    writer.finish()
    return next(folder.glob(f"step-{step:08d}-*.ckpt"))


def test_the_digest_in_the_name_is_the_md5_of_the_bytes_and_torch_reads_them(tmp_path):
    path = write(tmp_path, 3, {"weights": torch.arange(9.0), "nested": [{"a": (1, "b")}]})
    assert path.stem.rsplit("-", 1)[-1] == file_md5(path) and is_whole(path) and step_of(path) == 3
    assert torch.equal(load(path)["weights"], torch.arange(9.0)) and load(path)["nested"] == [{"a": (1, "b")}]
    assert not (tmp_path / "checkpoint.tmp").exists()


def test_every_truncation_and_every_tried_bit_flip_is_seen_and_the_one_before_is_taken(tmp_path):
    write(tmp_path, 1)
    good = write(tmp_path, 2)
    content = good.read_bytes()
    damages = [content[:cut] for cut in (0, 1, len(content) // 2, len(content) - 1)]
    for bit in range(0, len(content) * 8, len(content) * 8 // 40):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damages.append(bytes(flipped))
    for damage in damages:
        good.write_bytes(damage)
        notes = []
        assert step_of(newest_checkpoint(tmp_path, notes.append)) == 1
        assert notes == [f"{good.name} is damaged and was removed; going on from the one before it"]
        assert not good.exists()
    good.write_bytes(content)
    assert newest_checkpoint(tmp_path, pytest.fail) == good


def test_nothing_but_damaged_checkpoints_is_no_checkpoint(tmp_path):
    write(tmp_path, 1).write_bytes(b"")
    assert newest_checkpoint(tmp_path, lambda note: None) is None


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    path = write(tmp_path, 1, {"weights": Evil()})
    with pytest.raises(Exception, match="weights_only"):
        load(path)
    assert not (tmp_path / "run").exists()


def test_what_training_changes_after_the_snapshot_does_not_reach_the_file(tmp_path, monkeypatch):
    may_write, weights = threading.Event(), torch.zeros(10)
    save = checkpoints._save
    monkeypatch.setattr(checkpoints, "_save", lambda *args: (may_write.wait(10), save(*args))[1])
    writer = Writer()
    writer.save_checkpoint({"weights": weights, "list": [weights]}, tmp_path / "step-00000001")  # returns although nothing is written yet
    assert not list(tmp_path.glob("*.ckpt"))
    weights += 1
    may_write.set()
    writer.finish()
    state = load(next(tmp_path.glob("*.ckpt")))
    assert not state["weights"].any() and not state["list"][0].any()


def test_the_next_checkpoint_waits_for_the_one_before(tmp_path, monkeypatch):
    order, may_write, save = [], threading.Event(), checkpoints._save

    def slow(state, path):
        may_write.wait(10)
        order.append(state["step"])
        return save(state, path)

    monkeypatch.setattr(checkpoints, "_save", slow)
    writer = Writer()
    writer.save_checkpoint({"step": 1}, tmp_path / "step-00000001")
    threading.Timer(0.05, may_write.set).start()
    writer.save_checkpoint({"step": 2}, tmp_path / "step-00000002")
    writer.finish()
    assert order == [1, 2] and len(list(tmp_path.glob("*.ckpt"))) == 2


def test_a_full_disk_stops_training_instead_of_going_unnoticed(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_save", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path, {}, {})


def test_copies_on_the_host_keep_structure_and_share_nothing():
    tensor = torch.ones(2)
    copied = on_host({"a": [tensor, (tensor, 1)], "b": "text"})
    tensor.zero_()
    assert copied["a"][0].sum() == 2 and copied["a"][1][0].sum() == 2 and copied["a"][1][1] == 1 and copied["b"] == "text"


# ---------------------------------------------------------------- in a training


def test_as_many_are_kept_as_asked_and_none_grows_with_the_steps(tmp_path):
    train(tmp_path, {}, {"steps": 400, "checkpoint_every_steps": 100, "keep_checkpoints": 3}, ramp=False)
    assert [step_of(path) for path in files(tmp_path)] == [200, 300, 400]  # what is remembered of the last 128 steps is full
    sizes = [path.stat().st_size for path in files(tmp_path)]
    assert max(sizes) - min(sizes) < 100  # a number for each step would be 900 bytes
    assert all("losses" not in json.dumps(list(load(path)["callbacks"].values())) for path in files(tmp_path))


def test_time_alone_makes_checkpoints_too(tmp_path, monkeypatch):
    now = iter(range(0, 10**9, 10))
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(now))  # ten seconds pass at each look
    train(tmp_path, {"checkpoint_every_seconds": 5}, {"checkpoint_every_steps": 1000, "keep_checkpoints": 100})
    assert [step_of(path) for path in files(tmp_path)] == list(range(1, 9))


def test_no_seconds_means_by_steps_alone(tmp_path):
    train(tmp_path, {"checkpoint_every_seconds": 0}, {"checkpoint_every_steps": 3, "keep_checkpoints": 100})
    assert [step_of(path) for path in files(tmp_path)] == [3, 6, 8]


def test_the_best_by_validation_is_kept_beside_the_newest(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 1.5, 5: 4.0, 6: 5.0, 7: 6.0, 8: 7.0}
    course, _ = train(tmp_path, {}, {"keep_checkpoints": 1}, looks=Looks(validate=lambda step: {"heldout_loss": losses[step]}, validate_every=1))
    best = best_checkpoint(tmp_path / "work")
    assert step_of(best) == 2 and course.best == {"step": 2, "value": 1.0}
    assert load(best)["callbacks"] and [step_of(path) for path in files(tmp_path)] == [8]


@pytest.mark.parametrize("step", [1, 3, 6])
def test_sigterm_leaves_a_checkpoint_of_its_step_and_a_clear_exit_and_the_run_goes_on_from_there(tmp_path, step):
    whole, expected = train(tmp_path / "whole", {}, {})
    heard = []

    def end_at(done):
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    before = signal.getsignal(signal.SIGTERM)
    context = Context(seed=1, resources=Resources(accelerator="cpu"), emit=lambda event: heard.append(event.get("text", "")))
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "parts", {}, {}, context=context, looks=Looks(validate=end_at, validate_every=1))
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert step_of(files(tmp_path / "parts")[-1]) == step
    assert any(f"a checkpoint was written after step {step} of 8" in text for text in heard)
    again, module = train(tmp_path / "parts", {}, {})
    assert again.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))


# ---------------------------------------------------------------- lines


def test_a_file_of_lines_is_cut_to_where_the_checkpoint_was(tmp_path):
    lines = Lines(tmp_path / "curve.jsonl")
    lines.go_on()
    lines.add({"step": 1})
    size = lines.size
    lines.add({"step": 2})
    lines.close()
    again = Lines(tmp_path / "curve.jsonl")
    again.size = size
    again.go_on()
    again.add({"step": 2, "again": True})
    again.close()
    assert (tmp_path / "curve.jsonl").read_text() == '{"step": 1}\n{"step": 2, "again": true}\n'


def test_lines_that_are_missing_are_said(tmp_path):
    lines = Lines(tmp_path / "curve.jsonl")
    lines.size = 100
    with pytest.raises(BadInput, match=r"has 0 bytes, and the checkpoint was made when it had 100: steps are missing"):
        lines.go_on()
