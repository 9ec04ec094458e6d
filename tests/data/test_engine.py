"""The engine: any number of workers and any engine give the same bytes; finished work survives a kill; workers end with their step."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.data import engine, shards
from components.data.steps import run_step
from components.data.versioning import params
from components.schema.config import BadInput
from components.schema.data import DataConfig

LINE = ("benchmarks", "collect", "clean", "filter", "dedup", "decontaminate", "documents", "chats", "tokenizer", "tokens", "mix")


def write_square(task: dict, out: Path) -> dict:
    with Path(task["log"]).open("a") as log:
        log.write(f"{task['n']}\n")
    time.sleep(task.get("sleep_s", 0))
    (out / "square.txt").write_text(str(task["n"] ** 2))
    return {"square": task["n"] ** 2}


def refuse(task: dict, out: Path) -> dict:
    raise BadInput("no such licence")


def tasks(tmp_path: Path, count: int = 5, **more: float) -> list[dict]:
    return [{"n": n, "log": str(tmp_path / "log.txt"), **more} for n in range(count)]


def test_results_and_files_come_in_the_order_of_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for choice in ("local:1", "local:3"):
        monkeypatch.setenv("MODELYARD_ENGINE", choice)
        work = tmp_path / choice.replace(":", "-")
        assert [r["square"] for r in engine.run(write_square, tasks(tmp_path), work)] == [0, 1, 4, 9, 16]
        assert [p.read_text() for p in engine.outputs(work, tasks(tmp_path), "square.txt")] == ["0", "1", "4", "9", "16"]


def note_process(task: dict, out: Path) -> dict:
    return {"process": os.getpid()}


def test_processes_are_started_for_large_or_unknown_work_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_ENGINE", "local:2")
    monkeypatch.setattr(engine, "SMALL_BYTES", 1000)
    for name, size in (("small", 400), ("large", 600)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "other").write_bytes(bytes(500))

    def here(*names: str | list[str]) -> bool:
        work = tmp_path / "work" / str(names)
        return {r["process"] for r in engine.run(note_process, [{"shard": name} for name in names], work)} == {os.getpid()}

    small, large, other = (str(tmp_path / name) for name in ("small", "large", "other"))
    assert here(small, other) and here(small, [small, other])
    assert not here(large, other) and not here(small, [other, large]) and not here("hub", "text")


def test_a_finished_task_is_not_run_again_and_a_half_done_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_ENGINE", "local:1")
    engine.run(write_square, tasks(tmp_path, 3), tmp_path / "work")
    (tmp_path / "work" / "000001").rename(tmp_path / "work" / "000001.partial")
    engine.run(write_square, tasks(tmp_path, 4), tmp_path / "work")
    assert (tmp_path / "log.txt").read_text().split() == ["0", "1", "2", "1", "3"]


def test_bad_input_in_a_worker_reaches_the_person_as_it_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_ENGINE", "local:2")
    with pytest.raises(BadInput, match="no such licence"):
        engine.run(refuse, tasks(tmp_path), tmp_path / "work")


@pytest.mark.parametrize(("value", "said"), [("spark", "neither local"), ("local:many", "no number of processes"), ("tcp://127.0.0.1:1", "does not answer")])
def test_an_engine_that_cannot_be_had_is_refused(value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="Dask is not installed: pip install -e '.[dask]'")
    monkeypatch.setenv("MODELYARD_ENGINE", value)
    monkeypatch.setattr(engine, "CONNECT_S", 1)
    with pytest.raises(BadInput, match=said):
        engine.run(write_square, tasks(tmp_path), tmp_path / "work")


def test_a_workspace_is_found_again_after_a_failure_and_forgotten_after_success_or_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "a.txt"
    source.write_text("one")

    def work_done() -> bool:
        with engine.workspace(tmp_path / "data/x/clean", {"option": 1}, tmp_path / "in") as work:
            found = work.exists()
            work.mkdir(parents=True, exist_ok=True)
            if not found:
                raise KeyboardInterrupt
            return found

    with pytest.raises(KeyboardInterrupt):
        work_done()
    assert work_done()  # the second time it is there, and the step ends
    with pytest.raises(KeyboardInterrupt):
        work_done()
    source.write_text("other")
    with pytest.raises(KeyboardInterrupt):  # an input changed: nothing of the old work is used
        work_done()


KILLED = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from components.data import engine
from test_engine import write_square, tasks
engine.SMALL_BYTES = 0
engine.run(write_square, tasks(Path({folder!r}), 8, sleep_s=0.4), Path({folder!r}) / "work")
"""


def test_a_killed_step_goes_on_and_leaves_no_worker_behind(tmp_path: Path) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    run = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "MODELYARD_ENGINE": "local:2"}, start_new_session=True)
    deadline = time.time() + 60
    while len(list((tmp_path / "work").glob("[0-9]*[0-9]"))) < 3 and time.time() < deadline:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    done = {p.name for p in (tmp_path / "work").iterdir() if (p / "result.json").exists() and not p.name.endswith(".partial")}
    time.sleep(1.0)
    assert not members(run.pid), "workers outlived their step"
    started = (tmp_path / "log.txt").read_text().split()
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "MODELYARD_ENGINE": "local:2"}, check=True)
    again = (tmp_path / "log.txt").read_text().split()[len(started) :]
    assert len(done) >= 3 and {int(n) for n in again} == set(range(8)) - {int(n) for n in done}


def members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


# ---------------------------------------------------------------- the whole line


def write_sources(folder: Path) -> None:
    """A few hundred documents of several kinds, poison among them, over six files."""
    folder.mkdir()
    words = "harbour boat tide rope sail wind captain storm island map letter morning quiet market bread fish lamp road hill stone".split()
    for number in range(6):
        rows = []
        for i in range(60):
            seed = hashlib.md5(f"{number}/{i // 2}".encode()).digest()
            chosen = [words[b % len(words)] for b in seed * 8]
            chosen[i % 2] = "lantern"  # pairs of near copies
            text = ". ".join(" ".join(["The", *chosen[k : k + 9], "and", "that", "is", "it"]) for k in range(0, 108, 9)) + "."
            rows.append(json.dumps({"text": text + f" It was written on day {i}.", "url": f"https://example.org/{number}/{i}"}))
        rows.insert(7, '{"text": "broken')
        (folder / f"part-{number}.jsonl").write_text("\n".join(rows) + "\n")


def line_hashes(folder: Path, config: DataConfig) -> dict[str, str]:
    """md5 of every file of every step."""
    for step in LINE:
        run_step(step, config, folder / config.name / step)
    return {str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(params, "PATH", tmp_path / "params.yaml")
    monkeypatch.setattr(shards, "SHARD_BYTES", 40_000)
    write_sources(tmp_path / "notes")
    return DataConfig.model_validate(
        {
            "name": "x",
            "sources": [{"kind": "files", "path": str(tmp_path / "notes")}],
            "filter": {"rules": {"web": ["gopher_quality"]}},
            "heldout_fraction": 0.1,
            "tokenizer": {"vocab_size": 400},
        }
    )


def test_a_dask_cluster_of_two_workers_gives_the_same_bytes_as_one_local_process(config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install -e '.[dask]'")
    monkeypatch.setenv("MODELYARD_ENGINE", "local:1")
    alone = line_hashes(tmp_path / "alone", config)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1") as cluster:
        monkeypatch.setenv("MODELYARD_ENGINE", cluster.scheduler_address)
        spread = line_hashes(tmp_path / "spread", config)
    assert spread == alone
    counts = json.loads((tmp_path / "alone/x/collect/counts.json").read_text())
    assert counts["documents"] == 360 and sum(entry["count"] for entry in counts["dropped"].values()) == 6
    assert json.loads((tmp_path / "alone/x/dedup/counts.json").read_text())["dropped"]
