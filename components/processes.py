"""Several training processes for one stage: torchrun inside the stage's own process.

The stage keeps what there is one of: the lock, the record, the MLflow run. Its processes (`python -m components work`) train together in the
stage's folder, and the first of them leaves what came out in `work/outcome.json`. They end with the stage, and the stage with the flow.

On several machines the stage runs on the first, with MODELYARD_MEET=HOST:PORT; it says what to run on each of the others, which see the same folders.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import yaml

from components.schema.config import BadInput
from components.schema.events import say
from components.schema.jobs import Job
from components.schema.records import Outcome


def rank() -> int:
    """Which of the training processes this is, from 0; 0 where it is alone."""
    return int(os.environ.get("RANK", 0))


def run(job: Job, out: Path, run_id: str) -> Outcome:
    """Train in job.run.resources.processes on each of its nodes. Errors: BadInput, as the processes said it."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    kept = out / "work"
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("outcome.json", "error.txt", "trace.txt"):
        (kept / name).unlink(missing_ok=True)
    (kept / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json")), encoding="utf-8")
    try:
        torchrun([*_meeting(job, out, run_id), *_command(out, run_id)])
    except ChildFailedError:
        if (kept / "error.txt").exists():
            raise BadInput((kept / "error.txt").read_text(encoding="utf-8")) from None
        if (kept / "trace.txt").exists():
            raise RuntimeError("a training process ended:\n" + (kept / "trace.txt").read_text(encoding="utf-8")) from None
        raise
    return Outcome.model_validate_json((kept / "outcome.json").read_text(encoding="utf-8"))


def hand_over(outcome: Outcome, out: Path) -> None:
    """Leave what came out for the stage."""
    (out / "work" / "outcome.json").write_text(outcome.model_dump_json(), encoding="utf-8")


def tell(name: str, text: str, out: Path) -> None:
    """Leave a message (error.txt) or a defect's traceback (trace.txt) for the stage; the first one counts, for the others follow from it."""
    path = out / "work" / name
    if not path.exists():
        path.write_text(text, encoding="utf-8")


def _command(out: Path, run_id: str) -> list[str]:
    return ["-m", "components", "work", "--config", str(out / "work" / "job.yaml"), "--out", str(out), "--mlflow-run", run_id]


def _meeting(job: Job, out: Path, run_id: str) -> list[str]:
    """torchrun's options: how many processes, and where machines meet. Errors: BadInput."""
    resources = job.run.resources
    count = ["--nproc-per-node", str(resources.processes)]
    if resources.nodes == 1:
        return ["--standalone", *count]
    place = os.environ.get("MODELYARD_MEET")
    if not place:
        raise BadInput(f"{job.stage}: nodes={resources.nodes}, and MODELYARD_MEET does not say where they meet, so none would find another. Set it to HOST:PORT of this machine")
    common = ["--nnodes", str(resources.nodes), *count, "--rdzv-backend", "c10d", "--rdzv-endpoint", place, "--rdzv-id", job.identity[:16]]
    other = shlex.join(["python", "-m", "torch.distributed.run", *common, *_command(out, run_id)])
    say({"event": "note", "text": f"waiting for {resources.nodes - 1} more machine(s); on each, in this project's folder: {other}"})
    return common
