"""DVC around the steps, in a copy of the project: what runs, what is kept, what comes back from the remote."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
import zc.lockfile

from components.data.versioning import params, versions
from components.schema.config import BadInput
from components.schema.data import DataConfig

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A git checkout with the data line in it and nothing made yet; the remote lies in a home of its own."""
    home, root = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("MODELYARD_HUB_MIRROR", raising=False)
    for name in ("components/data", "components/schema"):
        shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("*.pyc"))  # compiled loops go along: their cache follows the sources' times
    for name in ("components/__init__.py", "components/__main__.py", "dvc.yaml", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "data/.gitignore"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, root / name)
    (root / "notes").mkdir()
    (root / "notes/a.txt").write_text("A first note. 1 2 3")
    (root / "notes/b.txt").write_text("A second note.")
    git(root, "init", "-q")
    commit(root)
    monkeypatch.chdir(root)
    return root


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=folder, check=True, capture_output=True)


def dvc(folder: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "state")


def config_of(**parts) -> DataConfig:
    raw = {
        "name": "small",
        "sources": [{"kind": "files", "path": "notes", "domain": "notes"}],
        "curriculum": {"documents": 120, "chats": 80, "preferences": 60, "benchmark_items": 5},
        "benchmarks": ["mini_gsm8k"],
        "tokenizer": {"vocab_size": 400},
    }
    return DataConfig.model_validate(raw | parts)


def make(config: DataConfig):
    return versions.reproduce(config, lambda event: None)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in (root / "data").rglob("*") if p.is_file()}


def test_a_second_run_does_nothing_and_a_change_runs_only_what_it_touches(project):
    events = []
    assert versions.status(config_of()) == dict.fromkeys(versions.STEPS, "never made")
    dataset, ran = versions.reproduce(config_of(), events.append)
    assert ran == list(versions.STEPS)
    assert [e["step"] for e in events if e["event"] == "progress"] == list(range(1, len(versions.STEPS) + 1))
    assert dataset.tokens.identity.endswith(".dir") and dataset.tokens.counts["train_tokens"] > 1000 and dataset.tokens.path == "data/small/tokens"
    assert versions.status(config_of()) == {}
    assert make(config_of()) == (dataset, [])
    assert versions.current(config_of()) == dataset

    smaller = config_of(tokenizer={"vocab_size": 350})
    before = (project / "params.yaml").read_bytes()
    downstream = {"tokens": "tokenizer will be made anew", "mix": "tokens will be made anew", "card": "tokenizer will be made anew"}
    assert versions.status(smaller) == {"tokenizer": "tokenizer changed", **downstream}
    assert (project / "params.yaml").read_bytes() == before
    changed, ran = make(smaller)
    assert ran == ["tokenizer", "tokens", "mix", "card"]
    assert changed.chats == dataset.chats and changed.tokens.identity != dataset.tokens.identity

    again, ran = make(config_of())
    assert ran in ([], ["tokenizer", "tokens", "mix", "card"]) and again == dataset  # DVC's run cache may know it already


def test_a_changed_local_file_is_noticed_and_an_absent_one_leaves_its_output_standing(project):
    dataset, _ = make(config_of())
    (project / "notes/b.txt").write_text("A second note, changed.")
    assert versions.status(config_of())["collect"] == "pins.documents changed"
    changed, ran = make(config_of())
    assert "collect" in ran and changed.tokens.identity != dataset.tokens.identity
    shutil.rmtree(project / "notes")
    assert make(config_of()) == (changed, [])


def test_data_pushed_from_one_clone_comes_back_in_another_with_the_same_bytes(project, tmp_path, monkeypatch):
    dataset, _ = make(config_of())
    dvc(project, "push", "-q")
    made = contents(project)
    commit(project)
    assert not [name for name in _tracked(project) if name.startswith("data/small")]

    git(tmp_path, "clone", "-q", str(project), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    assert versions.current(config_of()) is None
    reasons = versions.status(config_of())
    assert set(reasons) == set(versions.STEPS) and "is not here" in reasons["tokens"]
    assert make(config_of()) == (dataset, [])
    assert contents(tmp_path / "clone") == made

    shutil.rmtree(tmp_path / "clone/data/small")
    dvc(tmp_path / "clone", "pull", "-q")
    assert contents(tmp_path / "clone") == made


def _tracked(root: Path) -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()


def test_an_installed_source_keeps_its_pin_until_asked_to_look_anew(project):
    config = config_of(sources=[{"kind": "installed", "packages": ["json"]}])
    versions.write_params(config)
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["datasets"]["small"]["pins"]["documents"]["installed:json"] = "python 3.9.1"
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    versions.write_params(config)
    assert params.load()["small"]["pins"]["documents"] == {"installed:json": "python 3.9.1"}
    versions.write_params(config, update=True)
    assert params.load()["small"]["pins"]["documents"]["installed:json"].startswith("python 3.11")


def test_what_a_recipe_says_comes_back_from_params_and_other_datasets_stay(project):
    plain = DataConfig.model_validate({"name": "plain", "sources": [{"kind": "files", "path": "notes", "max_bytes": 9}]})
    versions.write_params(config_of())
    versions.write_params(plain)
    assert params.read(params.PATH, "small") == config_of()
    assert params.read(params.PATH, "plain") == plain
    with pytest.raises(BadInput, match=r"no dataset 'other'.*It holds: plain, small"):
        params.read(params.PATH, "other")


def test_what_is_on_the_hub_is_read_again_at_the_commit_of_its_pin(project, monkeypatch):
    asked = []
    monkeypatch.setattr("components.data.reading.hub.fingerprint", lambda id, config, revision: asked.append(id) or f"revision {len(asked)}a")
    config = config_of(sources=[{"kind": "hub", "id": "org/texts", "config": "en"}])
    versions.write_params(config)
    versions.write_params(config)
    assert asked == ["org/texts"] and params.load()["small"]["pins"]["documents"] == {"org/texts:en": "revision 1a"}
    assert params.read(params.PATH, "small").sources[0].revision == "1a" and config.sources[0].revision is None
    versions.write_params(config, update=True)
    assert params.read(params.PATH, "small").sources[0].revision == "2a"


def test_a_tokenizer_in_a_folder_is_pinned_by_its_content(project):
    (project / "own").mkdir()
    (project / "own/tokenizer.json").write_text("{}")
    config = config_of(tokenizer={"kind": "pretrained", "id": "own"})
    versions.write_params(config)
    before = params.load()["small"]["pins"]["tokenizer"]["own"]
    (project / "own/tokenizer.json").write_text("{ }")
    versions.write_params(config)
    assert params.load()["small"]["pins"]["tokenizer"]["own"] != before and params.read(params.PATH, "small").tokenizer.revision is None


def test_a_failing_stage_gives_its_own_message_and_nothing_else(project):
    (project / "chats.jsonl").write_text('{"question": "why", "answer": ""}\n')
    with pytest.raises(BadInput) as caught:
        make(config_of(chats=[{"kind": "files", "path": "chats.jsonl"}]))
    assert str(caught.value).startswith("chats: chats.jsonl: 1 of its first 1 rows cannot be converted: empty_answer 1 (such as chats.jsonl, line 1: answer is empty).")


def test_a_source_that_is_not_there_is_said_before_anything_runs(project):
    for act in (make, versions.status):
        with pytest.raises(BadInput, match=r"gone\.txt does not exist"):
            act(config_of(sources=[{"kind": "files", "path": "gone.txt"}]))
    assert not (project / "params.yaml").exists()


def test_outside_a_project_the_message_says_where_to_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(BadInput, match="is not a project with DVC"):
        make(DataConfig.model_validate({"name": "x", "sources": [{"kind": "files", "path": "a.txt"}]}))


def test_data_steps_start_without_torch():
    code = "import sys, components.data.versioning.versions, components.data.steps as s\nfor m in s.MODULES.values(): __import__(f'components.data.{m}')\nassert 'torch' not in sys.modules and 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_a_dataset_without_a_curriculum_is_made_of_its_sources_alone(project):
    (project / "qa.jsonl").write_text("\n".join(f'{{"question": "why {i}", "answer": "so"}}' for i in range(9)))
    plain = DataConfig.model_validate({"name": "plain", "sources": [{"kind": "files", "path": "notes", "domain": "notes"}], "chats": [{"kind": "files", "path": "qa.jsonl"}]})
    dataset, ran = make(plain)
    assert ran == list(versions.STEPS) and dataset.chats.counts["chats"] == 9 and dataset.preferences.counts["pairs"] == 0
    assert make(plain) == (dataset, []) and versions.status(plain) == {}


def test_two_looks_at_the_data_at_the_same_time_wait_for_each_other(project, monkeypatch):
    monkeypatch.setattr("dvc.lock.DEFAULT_TIMEOUT", 0.06)  # seconds until DVC would give up
    (project / ".dvc" / "tmp").mkdir(exist_ok=True)
    other = zc.lockfile.LockFile(str(project / ".dvc" / "tmp" / "lock"))
    threading.Timer(0.5, other.close).start()
    began = time.monotonic()
    with versions._repository() as repo, repo.lock:
        assert time.monotonic() - began >= 0.5
