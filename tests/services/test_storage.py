"""Results elsewhere, on a real S3 service: large files in parts, a store that goes away and comes back, refusals."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.schema.config import BadInput, Unavailable
from components.schema.records import File, Record, file_md5
from components.storage import mirror, results, unfinished
from components.storage.store import Store, _made, configured
from tests.services.stack import ObjectStore

pytestmark = pytest.mark.services
IDENTITY = "0123456789abcdef0123456789abcdef"
NAME = f"pretrain-{IDENTITY[:16]}"


@pytest.fixture
def store(object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MODELYARD_STORE", f"s3://{object_store.bucket()}/team")
    monkeypatch.setenv("MODELYARD_STORE_EVERY_S", "0.2")
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    found = configured()
    assert found
    return found


def test_a_large_result_goes_in_parts_and_comes_back_with_its_bytes(store: Store, object_store: ObjectStore, tmp_path: Path) -> None:
    folder, notes = tmp_path / "home" / "stages" / NAME, []
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(130 * 2**20))
    (folder / "config.json").write_text("{}")
    files = {name: File(md5=file_md5(folder / name), size=(folder / name).stat().st_size) for name in ("model.safetensors", "config.json")}
    record = Record(stage="pretrain", identity=IDENTITY, revision=1, config={}, inputs={}, files=files, figures={})
    record.write(folder)
    results.push(folder, record, notes.append)
    head = object_store.client().head_object(Bucket=store.root.split("/")[2], Key=f"team/stages/{NAME}/model.safetensors")
    assert head["ETag"].strip('"').endswith("-3"), "130 MiB are three parts of at most 50"
    folder.rename(folder.with_name("moved"))
    assert results.fetch(folder, IDENTITY, notes.append)
    assert file_md5(folder / "model.safetensors") == files["model.safetensors"].md5


def test_a_store_that_goes_away_is_told_once_and_gets_the_newest_state_when_it_is_back(store: Store, object_store: ObjectStore, tmp_path: Path) -> None:
    partial, notes = tmp_path / "home" / "stages" / f"{NAME}.partial", []
    checkpoint(partial, 4)
    with mirror.mirrored(partial, IDENTITY, lambda event: notes.append(event["text"])):
        wait_until(lambda: step(store) == 4)
        object_store.away()
        try:
            checkpoint(partial, 8)
            wait_until(lambda: any("stays on" in note or "stay on" in note for note in notes))
            checkpoint(partial, 12)
        finally:
            object_store.back()
        wait_until(lambda: step(store) == 12)
    assert sum("stay on this machine for now" in note for note in notes) == 1
    assert any("again (now step 12)" in note for note in notes)


def test_a_store_that_is_away_is_unavailable_within_seconds(store: Store, object_store: ObjectStore) -> None:
    object_store.away()
    try:
        began = time.monotonic()
        with pytest.raises(Unavailable, match="does not answer"):
            results.standing(NAME, IDENTITY)
        assert time.monotonic() - began < 30
    finally:
        object_store.back()


def test_a_wrong_secret_and_a_missing_bucket_are_told_apart_from_a_store_that_is_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_STORE", "s3://nowhere-at-all")
    absent = configured()
    assert absent
    with pytest.raises(BadInput, match="bucket of s3://nowhere-at-all does not exist") as told:
        absent.write("x", b"x")
    assert not isinstance(told.value, Unavailable)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guessed")
    _made.cache_clear()
    monkeypatch.setenv("MODELYARD_STORE", store.root)
    refused = configured()
    assert refused
    with pytest.raises(BadInput, match="refused us") as told:
        refused.write("x", b"x")
    assert not isinstance(told.value, Unavailable)
    _made.cache_clear()


def step(store: Store) -> int | None:
    try:
        state = unfinished.read(store, NAME, IDENTITY)
    except Unavailable:
        return None
    return state and state.step


def checkpoint(partial: Path, number: int) -> None:
    work = partial / "work"
    work.mkdir(parents=True, exist_ok=True)
    content = f"state after {number}".encode()
    (work / f"step-{number:08d}-{hashlib.md5(content).hexdigest()}.ckpt").write_bytes(content)


def wait_until(is_so: Callable[[], Any], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)
