"""Every day the tiny recipe from nothing to a release, in a place of its own: does this installation still give the same, as fast?

    prefect deployment run canary/canary

A clone of the project with its own home, data cache, tracker and registry under MODELYARD_HOME/canary, so that everything really runs and nothing of
it reaches the real registry. What came out is compared with the canary's own history on machines like this one: a stage whose result
has other bytes, or that took much longer than it used to, fails the run with a message that names it. Each change is told once: the next
canary is compared with what is then. Times are judged only where the rest of the machine was quiet meanwhile; results always.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed, State

from components.registry.lineage import cpu_model
from components.schema.config import BadInput
from components.schema.records import REVISIONS, Record, home
from flows.canary_picture import picture
from flows.schedules import CatchUp, missed, one_at_a_time, skipped

COMPARED = 10  # earlier canaries whose times count
LEAST = 3  # times are judged from this many on
GRACE_S = 10.0  # a stage may always take this much longer
QUIET = 0.25  # share of the cores that others may use where times are judged: two on one core take twice as long each


@flow(name="canary", flow_run_name="canary {recipe}")
def canary(
    recipe: str = "recipes/tiny.yaml", threads: int = 1, slower_than: float = 1.5, keep: bool = False, catch_up: CatchUp = "latest", late_minutes: int = 60
) -> State[Any]:
    """The recipe from nothing to a release, in a place of its own; fails where results or times are not what they used to be.

    Args:
        recipe: Recipe file, relative to the project. The tiny one takes minutes.
        threads: CPU threads of each stage; results are the same only with the same number.
        slower_than: A stage that takes this many times its usual time, and ten seconds more, counts as a change.
        keep: Keep the clone and all results, to look at.
        catch_up: After a time out of work. latest: of the runs that were missed, the last one runs. none: what is more than late_minutes late is left out.
        late_minutes: How late a scheduled run may start with catch_up none, in minutes.
    """
    if reason := missed(catch_up, late_minutes):
        return skipped(reason)
    with one_at_a_time("canary"):
        folder = home() / "canary"
        place = _clone(folder / "now")
        try:
            began = _processor_seconds()
            summary = _run(place, recipe, threads)
            entry = {**_entry(summary, recipe, threads), "others": _others(began)}
        finally:
            if not keep:
                shutil.rmtree(place.parent, ignore_errors=True)
        earlier = [old for old in history(folder) if _comparable(old, entry)]
        changes = compare(earlier, entry, slower_than)
        with (folder / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps({**entry, 'changes': changes})}\n")  # not behind a line that a kill cut short
    _show([*earlier, entry])
    if changes:
        return Failed(name="Changed", message=f"canary of {recipe}: {'; '.join(changes)}")
    against = f"as {len(earlier)} before it" if earlier else "the first one of its kind here, so it was compared with nothing"
    busy = "" if entry["others"] <= QUIET else f"; times were not judged, since others used {entry['others']:.0%} of the machine"
    return Completed(message=f"canary of {recipe}: {entry['seconds_in_all']:.0f} s, {against}{busy}", data=entry)


def compare(earlier: Sequence[dict[str, Any]], entry: dict[str, Any], slower_than: float = 1.5) -> list[str]:
    """What is not as it used to be, a sentence for each; nothing where there is no earlier canary. Results against the last one, times against the median of the last few."""
    if not earlier:
        return []
    last, changes, others = earlier[-1], [], []
    quiet = [old for old in earlier if old.get("others", 0.0) <= QUIET][-COMPARED:] if entry.get("others", 0.0) <= QUIET else []
    for name, stage in entry["stages"].items():
        before = last["stages"].get(name)
        if before is None:
            changes.append(f"{name} is new in the line")
        elif stage["hash"] != before["hash"]:
            others.append(name)
        times = [old["stages"][name]["seconds"] for old in quiet if name in old["stages"]]
        if len(times) >= LEAST and stage["seconds"] > (usual := statistics.median(times)) * slower_than + GRACE_S:
            changes.append(f"{name} took {stage['seconds']:.0f} s, and usually takes {usual:.0f} s")
    if others:  # what comes after a stage with another result has another one too, for no reason of its own
        after = f"; after it so have {', '.join(others[1:])}" if others[1:] else ""
        changes.insert(0, _changed(others[0], last["stages"][others[0]], entry["stages"][others[0]]) + after)
    changes += [f"{name} is no longer in the line" for name in last["stages"] if name not in entry["stages"]]
    return changes


def _changed(name: str, before: dict[str, Any], stage: dict[str, Any]) -> str:
    """What differs in a stage's result, and whether it had any right to."""
    figures = {key: (before["figures"].get(key), value) for key, value in stage["figures"].items() if before["figures"].get(key) != value}
    shown = ", ".join(f"{key} {old} → {new}" for key, (old, new) in list(figures.items())[:3]) or "the bytes of its files"
    if before["revision"] != stage["revision"]:
        why = f"its revision went from {before['revision']} to {stage['revision']}"
    elif before["identity"] != stage["identity"]:
        why = "what it was given changed too"
    else:
        why = "nothing that it was given changed, so code, packages or machine did"
    return f"{name} has another result ({shown}): {why}"


def history(folder: Path) -> list[dict[str, Any]]:
    """Every canary so far, oldest first; a line that a kill cut short is left out."""
    path, found = folder / "history.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _comparable(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return all(old.get(name) == new[name] for name in ("recipe", "cpu", "cores", "threads"))


def _clone(folder: Path) -> Path:
    """The project as it is now, uncommitted changes and new files with it, without its data. Errors: BadInput."""
    shutil.rmtree(folder, ignore_errors=True)
    place, here = folder / "project", Path.cwd()
    folder.mkdir(parents=True)
    done = subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(here), str(place)], capture_output=True, text=True)
    if done.returncode:
        raise BadInput(f"canary: {here} cannot be cloned ({done.stderr.strip()[-200:]}), so there is no clean place to run in. It must be a git checkout")
    changed = subprocess.run(["git", "ls-files", "-z", "--modified", "--others", "--exclude-standard"], cwd=here, capture_output=True, text=True, check=True).stdout
    for name in filter(None, changed.split("\0")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if (here / name).is_file():
            shutil.copy2(here / name, place / name)
        else:
            (place / name).unlink(missing_ok=True)
    (place / "dvc.lock").unlink(missing_ok=True)  # nothing is current, nothing is in this cache: all data is made
    (place / ".dvc").mkdir(exist_ok=True)
    (place / ".dvc" / "config.local").write_text(f"[core]\n    remote = canary\n['remote \"canary\"']\n    url = {folder / 'remote'}\n[cache]\n    dir = {folder / 'cache'}\n")
    return place


def _run(place: Path, recipe: str, threads: int) -> dict[str, Any]:
    """The line in its place, as a person would type it; what it says goes to the run's log. Gives its summary. Errors: RuntimeError, with its last lines."""
    logger = get_run_logger()
    own = ("MODELYARD_HOME", "MODELYARD_PROJECT", "MODELYARD_STORE", "MLFLOW_", "PREFECT_", "PREFECT__", "DVC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    command = [sys.executable, "-m", "flows.cli", "run", recipe, "--threads", str(threads), "--json"]
    process = subprocess.Popen(
        command, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env={**kept, "MODELYARD_HOME": str(place.parent / "home"), "PYTHONPATH": str(place), "COLUMNS": "160"}, preexec_fn=_end_with_parent,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if not line.startswith("{"):
            logger.info(line.rstrip())
    if process.wait():
        last = "\n".join(lines[-20:])
        raise RuntimeError(f"canary: the line itself failed with code {process.returncode}, so there is nothing to compare. Its last lines:\n{last}")
    return json.loads(lines[-1])


def _processor_seconds() -> tuple[float, float, float]:
    """Now, and the processor's seconds since the machine began: of everybody (stolen ones too), and of what this process has started and seen end."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic(), (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), ours.ru_utime + ours.ru_stime


def _others(began: tuple[float, float, float]) -> float:
    """Share of the machine's cores that others used since then."""
    wall, everybody, ours = (now - then for now, then in zip(_processor_seconds(), began, strict=True))
    return round(max(0.0, everybody - ours) / max(wall, 0.1) / (os.cpu_count() or 1), 3)


def _end_with_parent() -> None:
    """Between fork and exec: the line goes when the flow does."""
    import ctypes
    import signal

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _entry(summary: dict[str, Any], recipe: str, threads: int) -> dict[str, Any]:
    """What the history keeps of one canary."""
    stages = {}
    for name, row in summary["stages"].items():
        record = Record.model_validate_json(Path(row["record"]).read_text(encoding="utf-8"))
        stages[name] = {
            "hash": record.hash,
            "identity": record.identity,
            "revision": REVISIONS.get(record.stage, record.revision),
            "figures": _numbers(record.figures),
            "seconds": record.execution.get("work_seconds", row["seconds"]),
        }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": recipe,
        "commit": commit,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "seconds_in_all": summary["seconds"],
        "stages": stages,
    }


def _numbers(figures: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested figures as `a/b/c`."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + name] = value
    return found


def _show(entries: Sequence[dict[str, Any]]) -> None:
    """The history on the run's page: seconds by stage, drawn and in numbers."""
    create_image_artifact(image_url=picture(entries), key="canary-history", description="Seconds of each stage, canary by canary; a mark where its result changed")
    rows = [{"at": entry["at"], "commit": entry["commit"][:8], "in all (s)": round(entry["seconds_in_all"]), **{name: round(stage["seconds"], 1) for name, stage in entry["stages"].items()}} for entry in entries[-30:]]
    create_table_artifact(table=rows, key="canary", description="Seconds of each stage's work")
