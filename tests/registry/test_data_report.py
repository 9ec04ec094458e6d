"""What a data version keeps with its run for people to look at."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.registry import data_report
from components.registry.store import client
from components.registry.tracking import open_stage


def test_reasons_with_examples_and_the_largest_clusters_are_kept(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_report, "CLUSTERS", 2)
    dropped = {"exact_duplicate": {"count": 3, "bytes": 30, "examples": ["a copy"]}}
    (tmp_path / "tiny/dedup/report").mkdir(parents=True)
    (tmp_path / "tiny/dedup/counts.json").write_text(json.dumps({"documents": 7, "dropped": dropped, "by_source": {"long": 1}}))
    pq.write_table(pa.table({"cluster": [0, 0, 1, 2], "excerpt": ["a", "a", "b", "c"]}), tmp_path / "tiny/dedup/report/clusters.parquet")
    run = open_stage(None, "data", "a" * 32, {}, {})
    data_report.log(run, tmp_path / "tiny")
    kept = Path(client().download_artifacts(run, "data_report", str(tmp_path)))
    assert json.loads((kept / "counts.json").read_text()) == {"dedup": {"documents": 7, "dropped": dropped}}
    assert pq.read_table(kept / "clusters.parquet")["cluster"].to_pylist() == [0, 0, 1]


def test_data_whose_steps_were_not_fetched_keeps_an_empty_report(home: Path, tmp_path: Path) -> None:
    run = open_stage(None, "data", "b" * 32, {}, {})
    data_report.log(run, tmp_path / "nowhere")
    assert [entry.path for entry in client().list_artifacts(run, "data_report")] == ["data_report/counts.json"]
