"""What `modelyard data diff` finds between two versions of a small project of its own, with real Git and real DVC."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.data.versioning import differences, stored
from components.data.versioning.difference_text import render
from components.schema.config import BadInput

ROOT = Path(__file__).parents[2]
MAKE = '''
import json, pathlib, sys, yaml
import pyarrow as pa, pyarrow.parquet as pq
from rules import keeps

step, name = sys.argv[1:]
wanted = yaml.safe_load(open("params.yaml"))["datasets"][name]
out = pathlib.Path(f"data/{name}/{step}")
if step == "collect":
    (out).mkdir(parents=True)
    (out / "counts.json").write_text(json.dumps({"documents": wanted["count"], "bytes": 10 * wanted["count"], "label": "x", "histograms": {"a": {"1": wanted["count"]}}}))
else:
    kept = [i for i in range(wanted["count"]) if keeps(i)]
    for side in ("train", "heldout"):
        (out / side).mkdir(parents=True)
        mine = [i for i in kept if (i < wanted["heldout"]) == (side == "heldout")]
        for shard in sorted({i // 10 for i in mine}):
            rows = [i for i in mine if i // 10 == shard]
            table = pa.table({"id": [f"{i:016x}" for i in rows], "text": [f"text\\x1b[31m {i} [bold]" + " word" * 99 for i in rows], "source": ["notes"] * len(rows), "url": [None if i % 2 else f"u/{i}" for i in rows]})
            pq.write_table(table, out / side / f"web-{shard:05d}.parquet", row_group_size=4)
    dropped = {} if len(kept) == wanted["count"] else {"odd_rule": {"count": wanted["count"] - len(kept), "examples": ["a"]}}
    (out / "counts.json").write_text(json.dumps({"documents": len(kept), "by_domain": {"web": {"documents": len(kept)}}, "dropped": dropped, "rate": len(kept) / 8}))
'''
STEP = "{{foreach: '${{datasets}}', do: {{cmd: '" + sys.executable + " make.py {step} ${{key}}', deps: [make.py, rules.py{more}], params: {params}, outs: ['data/${{key}}/{step}']}}}}"
BOTH = {"one": {"count": 30, "heldout": 3, "sources": [{"path": "a", "max": 1}, {"id": "org/b"}]}, "two": {"count": 5, "heldout": 1, "sources": []}}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A Git and DVC project with a folder as its remote, and one committed version."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    steps = {"collect": STEP.format(step="collect", more="", params="['datasets.${key}.count', 'datasets.${key}.sources']")}
    steps["documents"] = STEP.format(step="documents", more=", 'data/${key}/collect'", params="['datasets.${key}.heldout']")
    (root / "dvc.yaml").write_text("stages:\n" + "".join(f"  {name}: {text}\n" for name, text in steps.items()))
    (root / "make.py").write_text(MAKE)
    (root / "rules.py").write_text("def keeps(i): return True\n")
    (root / ".gitignore").write_text("/data\n")
    git("init", "-q")
    dvc(["init", "-q"], ["remote", "add", "-q", "-d", "store", str(tmp_path / "remote")], ["config", "core.autostage", "false"])
    make(BOTH)
    commit("v1")
    return root


def git(*words: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], check=True, capture_output=True)


def dvc(*commands: list[str]) -> None:
    from dvc.cli import main

    for command in commands:
        assert main(command) == 0


def make(datasets: dict) -> None:
    from dvc.repo import Repo

    Path("params.yaml").write_text(yaml.safe_dump({"datasets": datasets}))
    with Repo(".") as repo:
        repo.reproduce()


def commit(tag: str) -> None:
    git("add", "-A")
    git("commit", "-qm", tag)
    git("tag", tag)


def with_one(**parts) -> dict:
    return BOTH | {"one": BOTH["one"] | parts}


@pytest.fixture
def changed(project) -> Path:
    """A second version: documents 30 to 34 are new, those that 7 divides are gone, 3 and 4 are held out too; a source more."""
    (project / "rules.py").write_text("def keeps(i): return i % 7\n")
    make(with_one(count=35, heldout=5, sources=[{"id": "org/new"}, {"path": "a", "max": 2}, {"id": "org/b"}]))
    commit("v2")
    return project


def test_between_two_commits_everything_that_changed_is_told(changed):
    found = differences.compare("v1", "v2")
    assert found.before.startswith("v1 (") and found.after.startswith("v2 (") and found.missing == found.unmade == []
    assert found.parameters == {
        "datasets.one.count": (30, 35),
        "datasets.one.heldout": (3, 5),
        "datasets.one.sources[a].max": (1, 2),
        "datasets.one.sources[org/new].id": (None, "org/new"),
    }
    assert found.code == {"rules.py": ["collect@one", "documents@one", "collect@two", "documents@two"]}
    steps = {f"{step.step}@{step.dataset}": step.counts for step in found.steps}
    assert list(steps) == ["collect@one", "documents@one", "documents@two"]
    assert steps["collect@one"] == {"documents": (30, 35), "bytes": (300, 350)}
    # of 0..34, 0 7 14 21 28 go: 30 documents are left, as many as before
    assert steps["documents@one"] == {"dropped.odd_rule": (None, 5)}
    assert steps["documents@two"] == {"documents": (5, 4), "by_domain.web.documents": (5, 4), "dropped.odd_rule": (None, 1), "rate": (0.625, 0.5)}
    one = found.documents["one"]
    assert (one.added, one.removed, one.kept, one.moved) == (5, 5, 25, 2)
    assert {row["id"] for row in one.examples["removed"]} == {f"{i:016x}" for i in (0, 7, 14)}
    assert [(row["id"], row["source"], row["url"]) for row in one.examples["added"]] == [(f"{i:016x}", "notes", "" if i % 2 else f"u/{i}") for i in (30, 31, 32)]
    assert one.examples["added"][0]["text"].startswith("text\x1b[31m 30 [bold] word") and len(one.examples["added"][0]["text"]) <= 100


def test_the_way_back_is_the_mirror_image(changed):
    there, back = differences.compare("v1", "v2"), differences.compare("v2", "v1")
    assert back.parameters == {name: pair[::-1] for name, pair in there.parameters.items()}
    assert [(step.md5, step.counts) for step in back.steps] == [(step.md5[::-1], {name: pair[::-1] for name, pair in step.counts.items()}) for step in there.steps]
    for name, documents in there.documents.items():
        other = back.documents[name]
        assert (other.added, other.removed, other.kept, other.moved) == (documents.removed, documents.added, documents.kept, documents.moved)
        assert other.examples["added"] == documents.examples["removed"]


def test_one_dataset_alone_and_nothing_changed(changed):
    two = differences.compare("v1", "v2", "two")
    assert [(step.dataset, step.step) for step in two.steps] == [("two", "documents")] and set(two.documents) == {"two"} and two.parameters == {}
    same = differences.compare("v2", "HEAD")
    assert (same.steps, same.parameters, same.code, same.documents) == ([], {}, {}, {}) and "The same data" in render(same)


def test_the_files_here_are_compared_and_what_is_not_made_is_said(project):
    Path("params.yaml").write_text(yaml.safe_dump({"datasets": with_one(count=31) | {"three": BOTH["two"]}}))
    asked = differences.compare("HEAD")
    assert asked.after == "the files here" and asked.steps == [] and asked.unmade == ["collect@one"]
    assert asked.parameters == {"datasets.one.count": (30, 31), "datasets.three": (None, BOTH["two"])}
    make(with_one(count=31) | {"three": BOTH["two"]})
    made = differences.compare("HEAD")
    assert made.unmade == [] and [f"{step.step}@{step.dataset}" for step in made.steps] == ["collect@one", "documents@one", "collect@three", "documents@three"]
    assert made.steps[2].md5[0] is None and made.steps[2].counts == {} and set(made.documents) == {"one"}
    assert (made.documents["one"].added, made.documents["one"].removed, made.documents["one"].kept) == (1, 0, 30)


def test_only_files_that_differ_are_read_for_ids(changed, monkeypatch):
    read = []
    original = differences._ids
    monkeypatch.setattr(differences, "_ids", lambda store, files: read.append(sorted(files)) or original(store, files))
    make(with_one(count=37, heldout=5))
    differences.compare("v2", None, "one")
    assert read == [["train/web-00003.parquet"]] * 2


def test_a_version_that_is_only_in_the_remote_is_read_there_and_one_that_is_nowhere_is_named(changed, tmp_path):
    here = differences.compare("v1", "v2")
    git("checkout", "-q", "v1")
    dvc(["checkout", "-q"], ["push", "-q"])
    git("checkout", "-q", "v2")
    dvc(["checkout", "-q"], ["push", "-q"])
    shutil.rmtree(".dvc/cache")
    assert differences.compare("v1", "v2") == here
    shutil.rmtree(tmp_path / "remote")
    there = differences.compare("v1", "v2")
    assert there.parameters == here.parameters and [step.md5 for step in there.steps] == [step.md5 for step in here.steps] and there.documents == {}
    assert there.missing[:2] == [f"collect@one of {here.before}", f"collect@one of {here.after}"] and len(there.missing) == 6
    told = " ".join(render(there).split())
    assert "dvc fetch --all-commits" in told and "modelyard data push" in told


def test_without_any_remote_what_the_cache_lacks_is_named_and_the_rest_compared(changed):
    dvc(["remote", "remove", "-q", "store"])
    lock = yaml.safe_load(subprocess.run(["git", "show", "v1:dvc.lock"], capture_output=True, check=True).stdout)
    md5 = lock["stages"]["documents@one"]["outs"][0]["md5"]
    os.remove(f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}")
    found = differences.compare("v1", "v2")
    assert found.missing == [f"documents@one of {found.before}"] and set(found.documents) == {"two"}
    assert next(step for step in found.steps if step.step == "collect").counts["documents"] == (30, 35)


def test_the_text_names_every_part_and_moves_no_cursor(changed):
    text = render(differences.compare("v1", "v2"))
    for part in ("datasets.one.count", "rules.py", "documents@one", "dropped.odd_rule", "5 added, 5 removed, 25 kept (2 of them moved", "000000000000001e", "-1 (-20.0%)"):
        assert part in text, part
    assert "\x1b" not in text and "[bold]" in text


def test_the_command_prints_text_or_json_of_any_two_revisions(changed):
    def command(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "components", "data-diff", *words], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    told = json.loads(command("v1", "v2", "--dataset", "one", "--json").stdout)
    assert told == json.loads(json.dumps(differences.compare("v1", "v2", "one").plain()))
    assert told["documents"]["one"]["added"] == 5
    wrong = command("v1", "nowhere")
    assert wrong.returncode == 2 and "Git knows no revision 'nowhere' here" in wrong.stderr


def test_questions_that_cannot_be_answered_say_why(changed, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"has a dataset 'four', so there is nothing to compare\. They have: one, two"):
        differences.compare("v1", "v2", "four")
    with pytest.raises(BadInput, match="Git knows no revision '--output=x' here"):
        differences.compare("--output=x")
    with pytest.raises(BadInput, match="3 revisions"):
        differences.main(["a", "b", "c"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="is not in a Git repository"):
        differences.compare("HEAD")
    with pytest.raises(BadInput, match="not a project with DVC"):
        stored.Store()


def test_a_revision_without_data_has_none(changed):
    git("rm", "-q", "dvc.lock", "params.yaml")
    git("commit", "-qm", "empty")
    gone = differences.compare("v2", "HEAD")
    assert [step.md5[1] for step in gone.steps] == [None] * 4 and gone.parameters["datasets.two"] == (BOTH["two"], None) and gone.missing == []
