"""The data's part of the wiring: DVC makes and says what is current; each function is one word of the door (`python -m components data ...`)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

from components.cost import budget
from components.schema.data import DataConfig
from components.schema.events import say
from components.schema.jobs import Job
from components.schema.records import REVISIONS, Record, home
from components.surroundings import check_disk, data_alone, launched, mlflow_run


def _data(job: Job) -> None:
    """DVC makes what is not current; the record names every part with DVC's md5."""
    from components.data.versioning import versions

    config = DataConfig.model_validate(job.config["data"])
    check_disk(job)
    account = home() / "cost" / f"data-{job.identity[:16]}"  # where the data will stand is not known yet
    with data_alone(), budget.Bill(job, account) as bill, mlflow_run(job) as tracked:
        began = time.time()
        dataset, ran = versions.reproduce(config, budget.ending(account, say))
        job = job.model_copy(update={"config": {"parts": {name: getattr(dataset, name).identity for name in versions.PARTS}}})
        folder = job.folder
        record = Record(
            stage="data",
            identity=job.identity,
            revision=REVISIONS["data"],
            config=dataset.model_dump(mode="json", exclude={part: {"counts"} for part in versions.PARTS}),
            inputs={},
            files={},
            figures={name: getattr(dataset, name).counts for name in versions.PARTS},
            execution={
                "work_seconds": round(time.time() - began, 2),
                "start_seconds": round(began - launched(), 2),
                "mlflow_run_id": tracked.run_id,
                "cost": bill.closed(),
            },
        )
        if not (folder / "record.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            record.write(folder)
        shutil.rmtree(account, ignore_errors=True)
        tracked.finish(record, folder, dataset)
    reason = f"DVC ran {', '.join(ran)}" if ran else "DVC: every data stage is current"
    say({"event": "result", "folder": str(folder), "action": "run" if ran else "reuse", "reason": reason})


def _current(job: Job) -> None:
    """The dataset where DVC has nothing to make, recorded as `data` would; no folder where it has. Seconds of work, so that it waits for no slot."""
    from components.data.versioning import versions

    with data_alone():
        stale = versions.status(DataConfig.model_validate(job.config["data"]))
    if stale:
        say({"event": "result", "folder": None})
    else:
        _data(job)


def _plan(job: Job) -> None:
    """Which data stages DVC would run, without running them; and the dataset as it stands, where it does."""
    from components.data.versioning import versions

    config = DataConfig.model_validate(job.config["data"])
    stale = versions.status(config)
    dataset = None if stale else versions.current(config)
    say({"event": "result", "stale": stale, "dataset": dataset and dataset.model_dump(mode="json")})


def _fetch(job: Job) -> None:
    """The dataset brought here from the store that machines share, as far as it stands there; nothing is made."""
    from components.data.versioning import versions

    with data_alone():
        dataset = versions.fetch(DataConfig.model_validate(job.config["data"]), say)
    say({"event": "result", "dataset": dataset and dataset.model_dump(mode="json")})


def _pin(job: Job) -> None:
    """params.yaml written anew, with what is on the hub and installed as it is now."""
    from components.data.versioning import versions

    versions.write_params(DataConfig.model_validate(job.config["data"]), update=True)
    say({"event": "result"})


def _look(job: Job) -> None:
    """What every source is at this moment, those on the hub and installed ones too. Nothing is written."""
    from components.data.versioning import pins

    say({"event": "result", "pins": pins.entry(DataConfig.model_validate(job.config["data"]), update=True)["pins"]})


RUN: dict[str, Callable[[Job], None]] = {
    "data": _data,
    "current-data": _current,
    "plan-data": _plan,
    "fetch-data": _fetch,
    "pin-data": _pin,
    "look-at-data": _look,
}
