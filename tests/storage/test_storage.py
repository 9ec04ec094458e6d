"""Results elsewhere, on a store that is a folder: what one machine finished or began, another one has."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from components.schema.config import BadInput, Unavailable
from components.schema.records import File, Record, file_md5, folder_of
from components.storage import mirror, results, unfinished
from components.storage.store import configured

IDENTITY = "0123456789abcdef0123456789abcdef"
NAME = f"sft-{IDENTITY[:16]}"


class Machine:
    """A home of its own beside the same store; notes are kept."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.home, self.patch, self.notes = folder, patch, []

    def here(self) -> Machine:
        self.patch.setenv("MODELYARD_HOME", str(self.home))
        return self

    def say(self, event: dict[str, Any]) -> None:
        self.notes.append(event["text"])

    @property
    def folder(self) -> Path:
        return folder_of("sft", IDENTITY) if os.environ["MODELYARD_HOME"] == str(self.home) else self.home / "stages" / NAME

    @property
    def partial(self) -> Path:
        return self.folder.with_name(f"{NAME}.partial")

    def finish(self, content: bytes = b"weights") -> Record:
        """A finished stage, as a stage leaves it."""
        (self.folder / "tokenizer").mkdir(parents=True)
        (self.folder / "model.safetensors").write_bytes(content)
        (self.folder / "tokenizer" / "vocab.json").write_text("{}")
        files = {name: File(md5=file_md5(self.folder / name), size=(self.folder / name).stat().st_size) for name in ("model.safetensors", "tokenizer/vocab.json")}
        record = Record(stage="sft", identity=IDENTITY, revision=1, config={"seed": 1}, inputs={}, files=files, figures={"loss": len(content)})
        record.write(self.folder)
        return record

    def checkpoint(self, step: int, content: bytes | None = None) -> Path:
        """A checkpoint as training names them, and the curve that it speaks of."""
        work = self.partial / "work"
        work.mkdir(parents=True, exist_ok=True)
        with (work / "curve.jsonl").open("a") as curve:
            curve.write(json.dumps({"step": step}) + "\n")
        content = content or f"state after {step}".encode()
        path = work / f"step-{step:08d}-{hashlib.md5(content).hexdigest()}.ckpt"
        path.write_bytes(content)
        return path


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Machine, Machine]:
    monkeypatch.setenv("MODELYARD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MODELYARD_STORE_EVERY_S", "0.2")
    return Machine(tmp_path / "one", monkeypatch), Machine(tmp_path / "two", monkeypatch)


def test_a_finished_stage_is_fetched_whole_by_another_machine(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    record = one.here().finish()
    results.push(one.folder, record, one.say)
    assert results.fetch(two.here().folder, IDENTITY, two.say)
    assert Record.read(two.folder) == record
    assert record.damage() is None
    assert (two.folder / "tokenizer" / "vocab.json").read_text() == "{}"


def test_the_record_is_copied_last(machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = machines
    record, order = one.here().finish(), []
    store = configured()
    assert store
    monkeypatch.setattr(store, "put", lambda file, key: order.append(key))
    monkeypatch.setattr(store, "write", lambda key, content: order.append(key))
    results.push(one.folder, record, one.say)
    assert order[-1] == f"stages/{NAME}/record.json" and len(order) == 3


def test_a_result_with_changed_bytes_is_refused_and_leaves_nothing(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, two = machines
    results.push(one.here().folder, one.finish(), one.say)
    (tmp_path / "store" / "stages" / NAME / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(BadInput, match=r"model.safetensors has other bytes than its record says"):
        results.fetch(two.here().folder, IDENTITY, two.say)
    assert not two.folder.exists() and not list(two.folder.parent.glob("*.arriving"))


def test_a_record_that_would_write_outside_its_folder_is_no_result(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, two = machines
    record = one.here().finish()
    results.push(one.folder, record, one.say)
    path = tmp_path / "store" / "stages" / NAME / "record.json"
    path.write_text(path.read_text().replace("tokenizer/vocab.json", "../../escaped.json"))
    assert results.standing(NAME, IDENTITY) is None
    assert not results.fetch(two.here().folder, IDENTITY, two.say)


def test_another_identity_under_the_same_short_name_is_no_result(machines: tuple[Machine, Machine]) -> None:
    one, _ = machines
    results.push(one.here().folder, one.finish(), one.say)
    assert results.standing(NAME, IDENTITY[:16] + "f" * 16) is None


def test_the_first_result_stays_where_another_machine_made_other_bytes(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    first = one.here().finish()
    results.push(one.folder, first, one.say)
    results.push(two.here().folder, two.finish(b"other weights"), two.say)
    there = results.standing(NAME, IDENTITY)
    assert there and there.hash == first.hash
    assert any("came out with other bytes" in note for note in two.notes)


def test_a_result_that_could_not_be_copied_is_copied_after_the_next_stage(machines: tuple[Machine, Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = machines
    record, store = one.here().finish(), configured()
    assert store

    def away(*_: object) -> None:
        raise Unavailable("storage: away")

    with monkeypatch.context() as broken:
        broken.setattr(store, "read", away)
        results.push(one.folder, record, one.say)
    assert any("stands on this machine only" in note for note in one.notes)
    other = one.folder.with_name("reward-" + "a" * 16)
    other.mkdir()
    later = Record(stage="reward", identity="a" * 32, revision=1, config={}, inputs={}, files={}, figures={})
    later.write(other)
    results.push(other, later, one.say)
    assert results.standing(NAME, IDENTITY) and results.standing(other.name, "a" * 32)
    assert not list((one.home / "storage" / "waiting").iterdir())


def test_an_unfinished_stage_goes_on_on_another_machine(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    one.here()
    one.checkpoint(4)
    one.checkpoint(8)
    store = configured()
    assert store and unfinished.send(store, one.partial, IDENTITY)
    two.here()
    assert "step 8" in (unfinished.waiting(two.partial, IDENTITY) or "")
    unfinished.bring(two.partial, IDENTITY, two.say)
    assert unfinished.local_step(two.partial) == 8
    assert [json.loads(line)["step"] for line in (two.partial / "work" / "curve.jsonl").read_text().splitlines()] == [4, 8]
    assert len(list((two.partial / "work").glob("step-*.ckpt"))) == 1, "the newest one is enough"


def test_a_machine_that_is_further_keeps_its_own_state(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    one.here().checkpoint(4)
    store = configured()
    assert store and unfinished.send(store, one.partial, IDENTITY)
    two.here().checkpoint(12)
    assert unfinished.waiting(two.partial, IDENTITY) is None
    unfinished.bring(two.partial, IDENTITY, two.say)
    assert unfinished.local_step(two.partial) == 12


def test_a_machine_left_behind_does_not_overwrite_a_later_state(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    two.here().checkpoint(12)
    store = configured()
    assert store and unfinished.send(store, two.partial, IDENTITY)
    one.here().checkpoint(8)
    with pytest.raises(unfinished.Superseded, match="later state of this stage"):
        unfinished.send(store, one.partial, IDENTITY)
    state = unfinished.read(store, NAME, IDENTITY)
    assert state and state.step == 12


def test_a_state_that_is_not_whole_is_left_alone(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, two = machines
    damaged = one.here().checkpoint(8)
    store = configured()
    assert store and unfinished.send(store, one.partial, IDENTITY)
    (tmp_path / "store" / "unfinished" / NAME / file_md5(damaged)).write_bytes(b"state after 9")
    two.here()
    unfinished.bring(two.partial, IDENTITY, two.say)
    assert not two.partial.exists()
    assert any("is not whole" in note for note in two.notes)


def test_only_the_newest_state_is_kept_and_a_finished_stage_leaves_none(machines: tuple[Machine, Machine]) -> None:
    one, _ = machines
    one.here()
    store = configured()
    assert store
    for step in (4, 8):
        one.checkpoint(step)
        unfinished.send(store, one.partial, IDENTITY)
    assert len(store.keys(f"unfinished/{NAME}")) == 3, "a checkpoint, the curve, and the list of the two"
    unfinished.forget(NAME, one.say)
    assert store.keys("unfinished") == []


def test_checkpoints_are_copied_while_a_stage_works_and_dropped_when_it_is_done(machines: tuple[Machine, Machine]) -> None:
    one, _ = machines
    one.here().checkpoint(4)
    store = configured()
    assert store
    with mirror.mirrored(one.partial, IDENTITY, one.say):
        wait_until(lambda: (state := unfinished.read(store, NAME, IDENTITY)) and state.step == 4)
        one.checkpoint(8)
        wait_until(lambda: (state := unfinished.read(store, NAME, IDENTITY)) and state.step == 8)
    assert any("copied to" in note for note in one.notes)


def test_the_checkpoint_of_a_stage_that_was_killed_is_still_copied(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, _ = machines
    one.here().checkpoint(4)
    one.patch.setenv("MODELYARD_STORE_EVERY_S", "600")  # never by itself within this test
    code = (
        "import sys, time; from pathlib import Path; from components.storage.mirror import mirrored\n"
        f"with mirrored(Path({str(one.partial)!r}), {IDENTITY!r}, lambda event: None):\n    print('open', flush=True); time.sleep(600)"
    )
    stage = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert stage.stdout and stage.stdout.readline() == "open\n"
        store = configured()
        assert store
        wait_until(lambda: unfinished.read(store, NAME, IDENTITY))
        one.checkpoint(8)
    finally:
        os.killpg(stage.pid, signal.SIGKILL)
        stage.wait()
    wait_until(lambda: (state := unfinished.read(store, NAME, IDENTITY)) and state.step == 8)


def test_a_store_that_is_away_costs_a_note_and_no_work(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    one, _ = machines
    (tmp_path / "store").write_text("a file where a folder should be")
    one.here().checkpoint(4)
    with mirror.mirrored(one.partial, IDENTITY, one.say):
        wait_until(lambda: one.notes)
    assert "the stage goes on" in one.notes[0] and len(one.notes) == 1


@pytest.mark.parametrize("wrong", ["s3://", "somewhere/relative", "ftp://host/folder"])
def test_an_address_that_cannot_work_is_told(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_STORE", wrong)
    with pytest.raises(BadInput, match="MODELYARD_STORE"):
        configured()


def wait_until(is_so: Any, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
