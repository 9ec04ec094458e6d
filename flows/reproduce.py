"""reproduce: a released model made again from nothing but its record, and compared byte by byte.

The stages run in a checkout of the recorded code, with a MODELYARD_HOME of their own: nothing that stands here is reused. One that is killed goes
on where it was; a model that comes out other than it was ends the flow in failure, with the first difference as its message.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from components.launch import Elsewhere, call
from components.registry import judgement, reproduction
from components.registry.judgement import ORDER, Report
from components.registry.reproduction import Place, Plan, Request
from components.schema.config import BadInput

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 40  # differences on the page

# Who started the flow in this process may hear what goes on; the terminal does.
teller: ContextVar[Callable[[str], None] | None] = ContextVar("teller", default=None)


class Differs(Exception):
    """The model that was made again is not the same."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.verdict)
        self.report = report


@flow(name="reproduce", flow_run_name="reproduce {request.model}")
def reproduce(request: Request) -> Report:
    """Make a released model again from its record alone, and compare every file with the recorded one."""
    began = time.time()
    plan = reproduction.planned(request)
    folder = reproduction.folder_for(plan)
    with _alone(folder):
        _say(f"{plan.uri}: {' → '.join(plan.records)}, by the code of commit {plan.made['git_commit'][:12]}{' and its uncommitted changes' if plan.made.get('git_patch') else ''}")
        place = prepare(plan, folder)
        notes = fetch_data(plan, place)
        made: dict[str, Path] = {}
        for stage in plan.records:
            made[stage] = run_again(plan, place, stage, dict(made))
        report = judgement.judged(plan, place, made, notes, time.time() - began)
        leaves = not report.identical or bool(request.keep)
        report = report if leaves else report.model_copy(update={"folder": None})
        judgement.keep(plan, report)
        _card(report)
        if not leaves:  # last: an environment is a hundred thousand files, which take minutes
            reproduction.remove(folder)
    if not report.identical:
        raise Differs(report)
    return report


@task(name="prepare", persist_result=False)
def prepare(plan: Plan, folder: Path) -> Place:
    """The recorded code in a checkout of its own."""
    if plan.request.fresh_environment:
        _say(f"environment: pip installs what was there then ({len(plan.made['installed'])} packages are known), which takes minutes")
    return reproduction.prepared(plan, folder)


@task(name="fetch-data", persist_result=False)
def fetch_data(plan: Plan, place: Place) -> tuple[str, ...]:
    """The data that the stages read, each byte hashed."""
    began = time.time()
    notes = reproduction.fetched(plan, place)
    _say(f"data: {', '.join(plan.parts)} ({time.time() - began:.0f} s)", *notes)
    return notes


@task(name="stage", task_run_name="{stage}", persist_result=False)
def run_again(plan: Plan, place: Place, stage: str, made: dict[str, Path]) -> Path:
    """One stage in that checkout, in a process of its own."""
    began, logger = time.time(), get_run_logger()
    job = reproduction.job_of(plan, place, stage, made)
    answer = call(stage, job, lambda event: logger.info(event["text"]) if event.get("text") else None, Elsewhere(place.python, place.code, place.environment))
    _say(f"{stage}: made again ({time.time() - began:.0f} s)")
    return Path(answer["folder"])


def told_here(request: Request, console: Console) -> Report:
    """The same flow from a terminal, told as it goes on. Prefect reads its settings when it is imported: import this where a server is known. Errors: BadInput."""
    token = teller.set(lambda text: console.print(text, highlight=False, soft_wrap=True))
    try:
        report = reproduce(request)
    except Differs as error:
        report = error.report
    finally:
        teller.reset(token)
    for line in lines(report):
        console.print(line, highlight=False, soft_wrap=True, style="green" if line == report.verdict and report.identical else None)
    return report


def lines(report: Report) -> Iterator[str]:
    """The report for a terminal."""
    yield report.verdict
    for kind in ORDER:
        yield from (f"  {kind}: {text}" for text in report.circumstances.get(kind, ()))
    for difference in report.differences[:SHOWN]:
        yield f"  {difference.stage}/{difference.file}: {difference.why}"
    if len(report.differences) > SHOWN:
        yield f"  and {len(report.differences) - SHOWN} files more (--json names all)"
    if report.folder:
        yield f"It lies in {report.folder}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two reproductions of one version would work in the same place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"reproduce: another process is at work in {folder}, so nothing was started. Wait for it to end, or name another folder with --keep") from None
        yield


def _say(*texts: str) -> None:
    tell = teller.get()
    for text in texts:
        get_run_logger().info(text)
        if tell:
            tell(text)


def _card(report: Report) -> None:
    """What came out, in the Prefect UI."""
    rows = "\n".join(f"| {kind} | {'<br>'.join(report.circumstances.get(kind, ())) or 'as it was'} |" for kind in ORDER)
    files = "\n".join(f"- {one.stage}/{one.file}: {one.why}" for one in report.differences[:SHOWN])
    text = f"# {report.model}: {'identical' if report.identical else 'differs'}\n\n{report.verdict}\n\n| | |\n| --- | --- |\n{rows}\n\n{files}"
    create_markdown_artifact(markdown=text, key="reproduction", description="A released model made again, and compared")
