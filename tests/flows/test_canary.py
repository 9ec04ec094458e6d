"""What the canary calls a change, and how it draws its history."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from flows.canary import _clone, _comparable, _others, _processor_seconds, compare, history
from flows.canary_picture import picture, svg
from tests.flows.project import Project


def entry(seconds: float = 20.0, **changed: Any) -> dict[str, Any]:
    stage = {"hash": "a", "identity": "i", "revision": 2, "figures": {"loss": 2.5}, "seconds": seconds, **changed}
    return {"at": "2026-11-21T04:30:00+00:00", "recipe": "recipes/tiny.yaml", "commit": "0" * 40, "cpu": "x", "cores": 2, "threads": 1, "seconds_in_all": 30.0, "stages": {"pretrain": stage}}


def test_the_same_result_in_the_usual_time_is_no_change() -> None:
    assert compare([entry(), entry(22.0), entry(19.0)], entry(24.0)) == []


def test_the_first_canary_is_compared_with_nothing() -> None:
    assert compare([], entry()) == []


def test_other_bytes_from_the_same_inputs_name_the_figure_and_accuse_the_environment() -> None:
    (text,) = compare([entry()], entry(hash="b", figures={"loss": 2.6}))
    assert "pretrain has another result (loss 2.5 → 2.6)" in text and "so code, packages or machine did" in text


def test_the_first_stage_with_another_result_is_told_of_and_those_after_it_are_named() -> None:
    before, now = entry(), entry(hash="b", figures={"loss": 2.6})
    for one, hash in ((before, "a"), (now, "b")):
        one["stages"] = {**one["stages"], **{name: {**entry()["stages"]["pretrain"], "hash": hash} for name in ("sft", "ppo")}}
    (text,) = compare([before], now)
    assert text.startswith("pretrain has another result (loss 2.5 → 2.6)") and text.endswith("; after it so have sft, ppo")


def test_another_revision_explains_another_result() -> None:
    (text,) = compare([entry()], entry(hash="b", revision=3, identity="j"))
    assert "its revision went from 2 to 3" in text


def test_a_change_is_told_once_since_the_next_one_is_compared_with_it() -> None:
    assert compare([entry(), entry(hash="b")], entry(hash="b")) == []


def test_a_stage_that_takes_twice_as_long_is_a_change_from_the_fourth_canary_on() -> None:
    assert compare([entry(), entry()], entry(60.0)) == []
    assert compare([entry(), entry(), entry()], entry(60.0)) == ["pretrain took 60 s, and usually takes 20 s"]


def test_times_of_a_busy_machine_are_neither_judged_nor_what_others_are_judged_by() -> None:
    assert compare([entry(), entry(), entry()], {**entry(60.0), "others": 0.6}) == []
    assert compare([entry(), entry(), {**entry(60.0), "others": 0.6}], entry(60.0)) == []
    assert compare([entry(), entry(), entry()], {**entry(60.0), "others": 0.1})


def test_others_are_seen_and_what_was_started_here_is_not_counted_among_them() -> None:
    began = _processor_seconds()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    _wall, everybody, ours = (now - then for now, then in zip(_processor_seconds(), began, strict=True))
    assert ours >= 0.5 and everybody >= ours - 0.1  # ticks of 10 ms, on every core
    assert 0.0 <= _others(began) <= 1.0


def test_short_stages_may_take_ten_seconds_more() -> None:
    assert compare([entry(1.0)] * 3, entry(9.0)) == []


def test_stages_that_come_and_go_are_changes() -> None:
    more = entry()
    more["stages"] = {**more["stages"], "sft": entry()["stages"]["pretrain"]}
    assert compare([entry()], more) == ["sft is new in the line"]
    assert compare([more], entry()) == ["sft is no longer in the line"]


@pytest.mark.parametrize("name", ["cpu", "cores", "threads", "recipe"])
def test_canaries_of_another_machine_or_recipe_are_not_compared(name: str) -> None:
    assert _comparable(entry(), entry()) and not _comparable({**entry(), name: "another"}, entry())


def test_a_line_of_the_history_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    whole = json.dumps(entry())
    (tmp_path / "history.jsonl").write_text(f"{whole}\n{whole[:40]}\n{whole}\n")
    assert len(history(tmp_path)) == 2


def test_the_picture_is_svg_with_a_line_for_each_stage_and_a_ring_where_the_result_changed() -> None:
    drawn = ElementTree.fromstring(svg([entry(), entry(25.0, hash="b"), entry(21.0, hash="b")]))
    space = "{http://www.w3.org/2000/svg}"
    assert len(drawn.findall(f"{space}polyline")) == 1
    assert [circle.get("r") for circle in drawn.findall(f"{space}circle")] == ["2", "6", "2"]
    head, _, body = picture([entry()]).partition(",")
    assert head == "data:image/svg+xml;base64" and base64.b64decode(body).startswith(b"<svg")


def test_the_clone_has_uncommitted_changes_and_new_files_and_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project.copy_to(tmp_path / "project")
    (project.folder / "README.md").write_text("changed")
    (project.folder / "new file.txt").write_text("new")
    (project.folder / "NOTICE").unlink()
    monkeypatch.chdir(project.folder)
    place = _clone(tmp_path / "now")
    assert (place / "README.md").read_text() == "changed" and (place / "new file.txt").read_text() == "new"
    assert not (place / "NOTICE").exists() and not (place / "dvc.lock").exists() and not (place / "data" / "tiny").exists()
    assert f"dir = {tmp_path}/now/cache" in (place / ".dvc" / "config.local").read_text()
