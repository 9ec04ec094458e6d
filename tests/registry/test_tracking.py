"""Runs, metrics and lineage, against a real MLflow store read back through MLflow's own client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from components.registry import store, tracking, views
from components.registry.store import client, experiment_id, store_uri
from components.registry.tracking import MetricSink, close_stage, flatten, lineage, log_inputs, open_pipeline, open_stage, send_unsent
from components.schema.config import BadInput, Unavailable
from components.schema.records import Record, Sample

ROOT = Path(__file__).parents[2]
HASH, IDENTITY = "a" * 32, "b" * 32


def history(run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client().get_metric_history(run_id, key))


def artifacts(run_id: str, path: str | None = None) -> set[str]:
    return {f.path for f in client().list_artifacts(run_id, path)}


def record() -> Record:
    return Record(
        stage="sft", identity=IDENTITY, revision=1, config={}, inputs={}, files={}, figures={}, samples=(Sample(prompt="2 + 2 =", output="4"),)
    )


# ---------------------------------------------------------------- runs


def test_a_killed_stage_started_again_goes_on_in_the_same_run(home: Path) -> None:
    parent = open_pipeline("tiny", HASH, "name: tiny", lineage(ROOT))
    first = open_stage(parent, "sft", IDENTITY, {"sft": {"steps": 200}}, {"seed": 7})
    close_stage(first, "FAILED", {})
    again = open_stage(open_pipeline("other", "c" * 32, "name: other", {}), "sft", IDENTITY, {"sft": {"steps": 200}}, {"seed": 7})
    assert again == first
    run = client().get_run(first)
    assert run.info.status == "RUNNING"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.params == {"sft.steps": "200"} and run.data.tags["modelyard.seed"] == "7"
    assert len(client().search_runs([experiment_id()])) == 3


def test_different_identities_are_different_runs(home: Path) -> None:
    assert open_stage(None, "sft", IDENTITY, {}, {}) != open_stage(None, "sft", "d" * 32, {}, {})


def test_a_pipeline_is_found_by_its_recipe_and_keeps_the_lineage_of_every_start(home: Path) -> None:
    one = open_pipeline("tiny", HASH, "name: tiny", lineage(ROOT))
    assert open_pipeline("tiny", HASH, "name: tiny", lineage(ROOT)) == one
    assert artifacts(one) == {"lineage", "recipe.yaml"} and artifacts(one, "lineage") == {"lineage/1", "lineage/2"}
    kept = ("installed.txt", "lineage.json", "uncommitted.patch", "params.yaml", "dvc.lock")
    assert artifacts(one, "lineage/2") == {f"lineage/2/{name}" for name in kept}
    assert client().get_run(one).data.tags["modelyard.starts"] == "2"


def test_closing_logs_figures_record_and_samples_once(home: Path, tmp_path: Path) -> None:
    run_id = open_stage(None, "sft", IDENTITY, {}, {})
    (tmp_path / "record.json").write_text("{}")
    figures = {"loss": {"before": 2.5, "after": 1.0}, "steps": 3, "note": "text", "ok": True, "list": [1], "bad": float("nan")}
    for _ in range(2):
        close_stage(run_id, "FINISHED", figures, tmp_path / "record.json", record())
    run = client().get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.metrics == {"loss/before": 2.5, "loss/after": 1.0, "steps": 3.0}
    assert history(run_id, "loss/after") == [(0, 1.0)]
    assert artifacts(run_id) == {"record.json", "samples.md"} and run.data.tags["modelyard.record_hash"] == record().hash


def test_names_that_mlflow_refuses_are_made_acceptable() -> None:
    assert dict(flatten({"a@1": {"b,c": 1}})) == {"a_1/b_c": 1.0}


def test_inputs_keep_the_digest_as_given_and_are_logged_once(home: Path) -> None:
    run_id = open_stage(None, "pretrain", IDENTITY, {}, {})
    dvc_md5 = "0123456789abcdef0123456789abcdef.dir"
    for _ in range(2):
        log_inputs(run_id, {"tokens": ("data/tiny/tokens", dvc_md5)})
    (entry,) = client().get_run(run_id).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("tokens", dvc_md5) and "data/tiny/tokens" in entry.dataset.source


# ---------------------------------------------------------------- metrics


def test_metrics_arrive_with_their_steps(home: Path) -> None:
    sink = MetricSink(open_stage(None, "sft", IDENTITY, {}, {}))
    for step in range(2500):  # more than one call to MLflow can take
        sink.log({"loss": 1 / (step + 1)}, step)
    sink.close()
    assert history(sink.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(2500)]


def test_a_resumed_stage_logs_no_step_twice_and_misses_none(home: Path) -> None:
    """Killed at step 37, resumed from the checkpoint at 30; validation is logged each tenth step only."""
    run_id = open_stage(None, "sft", IDENTITY, {}, {})

    def train(first: int, last: int) -> None:
        sink = MetricSink(run_id)
        for step in range(first, last):
            sink.log({"loss": float(step)}, step)
            if step % 10 == 0:
                sink.log({"heldout": float(step)}, step)
        sink.close()

    train(0, 37)
    train(30, 60)
    assert history(run_id, "loss") == [(s, float(s)) for s in range(60)]
    assert history(run_id, "heldout") == [(s, float(s)) for s in range(0, 60, 10)]


def test_metrics_are_sent_while_training_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.registry.metrics.EVERY_S", 0.05)
    sink = MetricSink(open_stage(None, "sft", IDENTITY, {}, {}))
    sink.log({"loss": 1.0}, 1)
    deadline = time.monotonic() + 10
    while not history(sink.run_id, "loss") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert history(sink.run_id, "loss") == [(1, 1.0)]
    sink.close()


def test_a_store_that_is_away_for_a_while_loses_nothing_and_is_said_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = MetricSink(open_stage(None, "sft", IDENTITY, {}, {}))
    real, away = sink._client.log_batch, True

    def log_batch(*args: Any, **kwargs: Any) -> None:
        if away:
            raise ConnectionError("connection refused")
        real(*args, **kwargs)

    monkeypatch.setattr(sink._client, "log_batch", log_batch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(5):
            sink.log({"loss": float(step)}, step)
            assert sink.flush() is False
        away = False
        sink.close()
    assert [str(w.message) for w in caught] == ["tracking: MLflow did not take metrics (connection refused); they wait here and training goes on"]
    assert history(sink.run_id, "loss") == [(s, float(s)) for s in range(5)]


def test_metrics_that_a_killed_stage_had_not_sent_are_sent_by_whoever_goes_on_with_it(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store was away from step 3 on; the stage was killed after step 7 and resumed from a checkpoint at step 6."""
    run_id, journal = open_stage(None, "sft", IDENTITY, {}, {}), tmp_path / "work" / "unsent.jsonl"
    monkeypatch.setattr("components.registry.metrics.EVERY_S", 60)
    first = MetricSink(run_id, journal)
    for step in range(3):
        first.log({"loss": float(step)}, step)
    assert first.flush() and not journal.read_text()
    for step in range(3, 8):
        first.log({"loss": float(step), "lr": 0.1}, step)
    with journal.open("a") as file:
        file.write('["loss", 8.0, 17')  # the kill
    second = MetricSink(run_id, journal)
    for step in range(6, 10):
        second.log({"loss": float(step), "lr": 0.1}, step)
    second.close()
    assert history(run_id, "loss") == [(s, float(s)) for s in range(10)]
    assert history(run_id, "lr") == [(s, 0.1) for s in range(3, 10)] and not journal.read_text()


def test_a_stage_does_not_end_before_its_metrics_are_sent(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, journal = open_stage(None, "sft", IDENTITY, {}, {}), tmp_path / "unsent.jsonl"
    send_unsent(run_id, journal)
    journal.write_text('["loss", 1.0, 1700000000000, 4]\n')

    def away(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("connection refused")

    with monkeypatch.context() as context, pytest.warns(UserWarning, match="connection refused"), pytest.raises(Unavailable, match="would have a gap"):
        context.setattr("mlflow.MlflowClient.log_batch", away)
        send_unsent(run_id, journal)
    send_unsent(run_id, journal)
    assert history(run_id, "loss") == [(4, 1.0)] and not journal.read_text()


def test_an_answer_that_was_lost_after_the_store_had_written_makes_no_doubles(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = MetricSink(open_stage(None, "sft", IDENTITY, {}, {}))
    real, answers = sink._client.log_batch, iter([False, True])

    def log_batch(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        if not next(answers):
            raise TimeoutError("no answer")

    monkeypatch.setattr(sink._client, "log_batch", log_batch)
    sink.log({"loss": 1.0}, 1)
    with pytest.warns(UserWarning, match=r"no answer"):
        sink.flush()
    sink.log({"loss": 2.0}, 2)
    sink.close()
    assert history(sink.run_id, "loss") == [(1, 1.0), (2, 2.0)]


# ---------------------------------------------------------------- the store


def test_importing_the_registry_does_not_import_mlflow() -> None:
    code = "import sys, components.registry.tracking, components.registry.models; print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_embedded_store_is_the_same_from_every_folder_and_writes_nowhere_else(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = open_stage(None, "sft", IDENTITY, {}, {})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_stage(None, "sft", IDENTITY, {}, {}) == run_id
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert client().get_run(run_id).info.artifact_uri.startswith(str(home))
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_two_processes_that_prepare_at_once_make_one_database(tmp_path: Path) -> None:
    code = "from components.registry.tracking import prepare; from components.registry.store import experiment_id; prepare(); print(experiment_id())"
    environment = {**os.environ, "MODELYARD_HOME": str(tmp_path / "home")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert outputs[0][0].splitlines()[-1] == outputs[1][0].splitlines()[-1]
    assert sorted(p.name for p in (tmp_path / "home/mlflow").iterdir() if not p.name.startswith("artifacts")) == ["lock", "mlflow.db"]


def test_a_server_that_does_not_answer_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert store_uri() == "http://127.0.0.1:9"
    with pytest.raises(BadInput, match=r"MLflow at http://127.0.0.1:9 does not answer .*Start it, or unset MLFLOW_TRACKING_URI"):
        open_stage(None, "sft", IDENTITY, {}, {})


# ---------------------------------------------------------------- lineage


def test_lineage_holds_the_commit_and_a_patch_that_restores_the_changes(tmp_path: Path) -> None:
    def git(*arguments: str, cwd: Path = tmp_path / "code", **options: Any) -> str:
        named = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        return subprocess.run(["git", *named, *arguments], cwd=cwd, check=True, capture_output=True, text=True, **options).stdout

    (tmp_path / "code").mkdir()
    git("init", "-q")
    (tmp_path / "code/a.py").write_text("one\n")
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / "code/a.py").write_text("two\n\n")
    (tmp_path / "code/new.py").write_text("x")
    found = lineage(tmp_path / "code")
    assert found["git_commit"] == git("rev-parse", "HEAD").strip() and found["git_untracked"] == ["new.py"]
    git("clone", "-q", str(tmp_path / "code"), str(tmp_path / "copy"), cwd=tmp_path)
    git("apply", cwd=tmp_path / "copy", input=found["git_patch"])
    assert (tmp_path / "copy/a.py").read_text() == "two\n\n"


def test_lineage_works_outside_a_checkout_and_names_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = lineage(tmp_path)
    assert found["git_commit"] is None and found["git_patch"] == ""
    import torch

    assert found["packages"]["torch"] == torch.__version__ and f"torch=={torch.__version__}" in found["installed"]
    assert found["cores"] == os.cpu_count() and found["cpu"]
    assert tracking.lineage is lineage


# ---------------------------------------------------------------- prepared pages


def test_the_experiment_keeps_a_page_of_curves_for_each_kind_of_training_and_renews_an_older_one(home: Path) -> None:
    name = f"{views.SHARED}{views.key('pretrain')}"
    kept = client().get_experiment(experiment_id()).tags
    page = json.loads(kept[name])
    assert page["searchFilter"] == "tags.`modelyard.stage` = 'pretrain'" and page["compareRunCharts"][0]["metricKey"] == "loss"
    by_tokens = next(chart for chart in page["compareRunCharts"] if chart["displayName"] == "loss by tokens")
    assert (by_tokens["metricKey"], by_tokens["xAxisKey"], by_tokens["selectedXAxisMetricKey"]) == ("loss", "metric", "tokens")
    client().set_experiment_tag(experiment_id(), name, "an older one")
    store._experiment_id.cache_clear()
    kept = client().get_experiment(experiment_id()).tags
    assert json.loads(kept[name]) == page and kept[views.NOTE].count("viewStateShareKey=modelyard-pretrain") == 1


def test_a_note_that_somebody_wrote_on_the_experiment_stays(home: Path) -> None:
    client().set_experiment_tag(experiment_id(), views.NOTE, "written by hand")
    store._experiment_id.cache_clear()
    assert client().get_experiment(experiment_id()).tags[views.NOTE] == "written by hand"


def test_prepared_pages_fit_into_a_tag() -> None:
    assert max(map(len, views.tags("12345").values())) <= 5000  # MLflow's limit
