"""The `modelyard` command: the same flows as in the Prefect UI, from a terminal.

    modelyard run recipes/tiny.yaml
"""

from __future__ import annotations

import typer

from flows.commands import cost, data, deploy, export, feedback, gate, line, lineage, models, platform, schedules, serve
from flows.server import join

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From raw text to a released language model, every step versioned, resumable and reproducible. Start with: modelyard run recipes/tiny.yaml",
)
for part in (line, models, serve, export, lineage, cost, platform, deploy, schedules):
    app.add_typer(part.app)
app.add_typer(data.app, name="data", help="The data and its versions: what DVC holds.")
app.add_typer(feedback.app, name="feedback", help="What is better: asked of people, who rank answers on a page, or of a critic.")
app.add_typer(serve.keys, name="keys", help="Who may use an endpoint: keys, kept as hashes.")
app.add_typer(gate.app, name="gate", help="What decides about a release: try a policy, size the suites for it, measure the noise.")


@app.callback()
def joined(context: typer.Context) -> None:
    if context.invoked_subcommand not in ("up", "down", "status"):
        join()  # the platform's servers, where it is up


if __name__ == "__main__":
    app()
