"""What a person sees in the terminal: the live line of each stage, and the report at the end.

The report is one screen: what each stage took, what it changed on data it never saw, the scores with their uncertainty,
a few things the models say, where to look, and what to try next.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from components.cost import bill
from components.schema.records import Record
from flows.platform.state import State

# The figure by which each training stage is judged, measured before and after on held-out data: (name, unit, format)
MEASURES = {
    "pretrain": ("bits_per_byte", "bits/byte", ".2f"),
    "sft": ("heldout_loss", "nats/token", ".2f"),
    "reward": ("accuracy", "pair accuracy", ".2f"),
    "cost": ("accuracy", "pair accuracy", ".2f"),
    "judge": ("accuracy", "pair accuracy", ".2f"),
    "ppo": ("reward", "reward", "+.2f"),
    "grpo": ("reward", "reward", "+.2f"),
    "dpo": ("accuracy", "pair accuracy", ".2f"),
    "best_of_n": ("reward", "reward", "+.2f"),
}
ROLES = {"base": "base", "chat": "chat (SFT)", "policy": "policy (aligned)"}


class Screen:
    """Listens to a flow's stages and keeps one line for each."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.results: dict[str, dict[str, Any]] = {}
        self.bar = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("[bold]{task.description:<9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", style="cyan"),
            TimeElapsedColumn(),
            console=console,
            transient=False,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, Any] = {}
        self.steps: dict[str, int] = {}

    def __enter__(self) -> Screen:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        stage = event["stage"]
        match event["event"]:
            case "started":
                if stage not in self.tasks:
                    self.tasks[stage] = self.bar.add_task(stage, total=None, text="")
                self._plain(f"{stage}: started")
            case "progress":
                numbers = "  ".join(text for key, form in NUMBERS if (value := event.get(key)) is not None and (text := form.format(value)))
                self.bar.update(self.tasks[stage], total=event["total"], completed=event["step"], text=numbers)
                self._plain_step(stage, event, numbers)
            case "note":
                self.bar.update(self.tasks[stage], text=event["text"][:60]) if self.console.is_terminal and stage in self.tasks else self._plain(f"{stage}: {event['text']}")
            case "ended":
                self.results[stage] = event
                text = {"reuse": "reused", "fetched": "fetched"}.get(event["verdict"].action) or _measure_line(event["record"])
                self.bar.update(self.tasks[stage], total=1, completed=1, text=text)
                self._plain(f"{stage}: {event['verdict'].action} in {event['seconds']:.1f} s  {text}")
            case "failed":
                self.bar.update(self.tasks[stage], text="[red]failed")

    def _plain(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, highlight=False, soft_wrap=True)

    def _plain_step(self, stage: str, event: dict[str, Any], numbers: str) -> None:
        """Without a terminal a bar is noise: one line each tenth."""
        tenth = 10 * event["step"] // max(event["total"], 1)
        if numbers and tenth != self.steps.get(stage):
            self.steps[stage] = tenth
            self._plain(f"{stage}: {event['step']}/{event['total']} {event.get('unit', 'steps')}  {numbers}")


NUMBERS = (("loss", "loss {:.3f}"), ("reward", "reward {:+.3f}"), ("kl", "kl {:.3f}"), ("tokens_per_s", "{:,.0f} tokens/s"))


def _measure_line(record: Record) -> str:
    """Before and after of the stage's own measure, in a few words."""
    if record.stage in MEASURES:
        f = record.figures
        name, unit, form = MEASURES[record.stage] if MEASURES[record.stage][0] + "_after" in f else ("heldout_loss", "nats/token", ".2f")
        line = f"{f[name + '_before']:{form}} → {f[name + '_after']:{form}} {unit}"
        return line + (f" at KL {f['kl']:.2f} nats" if "kl" in f else "")
    if record.stage == "evaluate":
        last = list(record.figures["scores"].values())[-1]
        return "  ".join(f"{suite} {s['score']:.2f}" for suite, s in last.items())
    if record.stage == "feedback":
        return f"{record.figures['pairs']:,} pairs of {record.figures['prompts']:,} prompts"
    if record.stage == "rate":
        return "  ".join(f"{name} {r['rating']:+.2f}" for name, r in record.figures.get("ratings", {}).items())
    if record.stage == "noise":
        return "  ".join(f"{suite} ± {spread['spread']:.4f}" for suite, spread in record.figures["suites"].items())
    if record.stage == "export":
        return f"{record.figures['to']}, {record.figures['bytes']:,} bytes"
    if record.stage == "release":
        return f"{record.figures['uri']} {record.figures['action']}"
    return f"{record.figures['tokens'].get('train_tokens', 0):,} tokens, {record.figures['chats'].get('train', 0):,} chats"


def report(summary: dict[str, Any], records: dict[str, Record], console: Console) -> None:
    """The closing screen of a run. `summary` is what `--json` prints; `records` are the stages' own, by name."""
    console.print()
    console.print(Panel(Group(_stages(summary, records), Text(), _scores(records), Text(), *([cost_table(summary["cost"])] if "cost" in summary else [])), title=f"[bold]{summary['recipe']}[/]", subtitle=_verdict(summary)))
    console.print(_samples(records))
    console.print(_where(summary))


def _stages(summary: dict[str, Any], records: dict[str, Record]) -> Table:
    table = Table(box=None, pad_edge=False, title="What each stage did (before → after, on data it never saw)", title_justify="left")
    for name, justify in (("stage", "left"), ("status", "left"), ("seconds", "right"), ("tokens/s", "right"), ("measure", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for stage, row in summary["stages"].items():
        record = records[stage]
        speed = record.execution.get("tokens_per_s")
        made = record.execution.get("work_seconds", 0)
        seconds = f"{row['seconds']:.1f}" if row["status"] == "ran" else f"(took {made:.0f})"
        table.add_row(stage, row["status"], seconds, f"{speed:,.0f}" if speed else "", _measure_line(record))
    return table


def _scores(records: dict[str, Record]) -> Table | Text:
    if "evaluate" not in records:
        return Text()
    figures = records["evaluate"].figures
    models = list(figures["scores"])
    table = Table(box=None, pad_edge=False, title="Scores ± standard error", title_justify="left")
    table.add_column("suite")
    for model in models:
        table.add_column(ROLES.get(model, model), justify="right")
    table.add_column("items", justify="right")
    for suite in figures["scores"][models[0]]:
        cells = [f"{s['score']:.3f} ± {s['stderr']:.3f}" for s in (figures["scores"][m][suite] for m in models)]
        table.add_row(suite, *cells, str(figures["scores"][models[0]][suite]["items"]))
    table.add_row("bits per byte, documents", *(f"{figures['perplexity'][m]['bits_per_byte']:.3f}" for m in models), "")
    return table


def cost_table(rows: dict[str, Any], first: str = "stage") -> Group:
    """What a run paid for, stage by stage (or runs, one by one): `components.cost.bill`."""
    titles = bill.heads(rows)
    table = Table(box=None, pad_edge=False, title="What it cost, all attempts", title_justify="left", show_footer=True)
    table.add_column(first, footer="in all")
    for name, title in titles.items():
        table.add_column(title, justify="right", footer=bill.figure(rows["total"][name]))
    for stage, row in rows["stages"].items():
        table.add_row(stage, *(bill.figure(row[name]) for name in titles))
    return Group(table, Text(bill.footnote(rows), style="dim"))


def _verdict(summary: dict[str, Any]) -> str:
    release = summary.get("release")
    return f"{release['uri']}: {release['action']}" if release else "not released"


def _samples(records: dict[str, Record]) -> Group:
    lines: list[Text] = []
    for stage in MEASURES:
        if stage in records and records[stage].samples:
            lines.append(Text(f"\n{stage} says", style="bold"))
            for sample in records[stage].samples[:3]:
                lines.append(Text.assemble(("  " + _short(sample.prompt, 70), "dim"), " ▸ ", _short(sample.output, 110)))
    return Group(*lines)


def _short(text: str, width: int) -> str:
    flat = text.replace("\n", " ⏎ ")
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def _where(summary: dict[str, Any]) -> Text:
    release = summary.get("release")
    out = Text()
    if release:
        out.append("\nThe gate: ", style="bold")
        out.append(release["reason"] + "\n")
        if release["action"] == "ask":
            out.append(f"It waits for your word: modelyard approve {release['uri']}, or modelyard reject {release['uri']}\n")
    out.append("\nWhere to look\n", style="bold")
    out.append(f"  this report again   modelyard show {summary['run']}\n")
    on_a_server = summary["mlflow"].startswith("http")
    out.append("  runs and curves     " + ("" if on_a_server else "mlflow ui --backend-store-uri ") + summary["mlflow"] + "\n")
    platform = State.running()
    out.append("  flows and logs      " + (platform.prefect_url.removesuffix("/api") if platform else "PREFECT_HOME=" + summary["prefect_home"] + " prefect server start") + "\n")
    out.append(f"  data versions       dvc dag; modelyard data status {summary['recipe_path']}; modelyard data push\n")
    out.append("Try next\n", style="bold")
    if release:
        out.append(f"  talk to it          modelyard chat {release['uri']}\n")
    out.append(f"  change something    modelyard run {summary['recipe_path']} --set pretrain.learning_rate=1e-3 --plan\n")
    return out
