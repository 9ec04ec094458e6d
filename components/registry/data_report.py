"""What a data version keeps with its run for people to look at: what each step dropped and why, with examples, and the largest clusters of copies.

    log(run_id, Path("data/tiny"))       # artifacts data_report/counts.json and data_report/clusters.parquet
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from components.registry.store import asks_store
from components.registry.tracking import log_folder

STEPS = ("collect", "clean", "filter", "dedup", "decontaminate", "chats", "preferences")
KEPT = ("documents", "bytes", "dropped", "changed")
CLUSTERS = 2000  # the largest ones: at ten documents of 300 characters each this is a few megabytes before compression


@asks_store
def log(run_id: str, data: Path) -> None:
    """`data`: the folder with one folder a step. A step whose report was not fetched is left out."""
    with tempfile.TemporaryDirectory(prefix="modelyard-report-") as scratch:
        reports = {step: json.loads(path.read_text(encoding="utf-8")) for step in STEPS if (path := data / step / "counts.json").is_file()}
        kept = {step: {name: report[name] for name in KEPT if name in report} for step, report in reports.items()}
        (Path(scratch) / "counts.json").write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
        if (clusters := data / "dedup/report/clusters.parquet").is_file():
            _largest(clusters, Path(scratch) / "clusters.parquet")
        log_folder(run_id, Path(scratch), "data_report")


def _largest(clusters: Path, out: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(clusters, filters=[("cluster", "<", CLUSTERS)]), out, compression="zstd")  # clusters are numbered by size
