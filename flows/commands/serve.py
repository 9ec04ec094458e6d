"""Commands about endpoints: serve, keys."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import errors_told

app = typer.Typer()
keys = typer.Typer(no_args_is_help=True)

KeyFile = Annotated[Path | None, typer.Option("--file", help="File of keys; MODELYARD_HOME/serving/keys.json unless told.")]


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/3, a checkpoint's folder, the address of a server that answers in its place, or a YAML file of these options.")],
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 = a free one (default 8000).")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; MODELYARD_HOST, else 127.0.0.1.")] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model; its registered name unless told.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto (default), own: this process. vllm: `vllm serve` as a child. A URL, or URL#MODEL: an OpenAI-compatible server that runs already.")] = None,
    canary: Annotated[str | None, typer.Option(help="A second model that answers a share of the users, such as models:/NAME@challenger.")] = None,
    canary_share: Annotated[float | None, typer.Option(help="That share, from 0 to 1 (default 0.1).")] = None,
    shadow: Annotated[str | None, typer.Option(help="A model that answers the same in idle time, only to be compared.")] = None,
    key_file: Annotated[Path | None, typer.Option("--keys", help="File of keys (modelyard keys add NAME); MODELYARD_HOME/serving/keys.json where it is there.")] = None,
    running: Annotated[int | None, typer.Option(help="Answers written at once in each arm (default 64).")] = None,
    waiting: Annotated[int | None, typer.Option(help="Answers that may wait; beyond, 429 (default 256).")] = None,
    context: Annotated[int | None, typer.Option(help="Longest prompt and answer together, in tokens; the model's own unless told.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="For each key, or address; 0 = no limit (default).")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Prompt and answer together, likewise.")] = None,
    body_kib: Annotated[int | None, typer.Option(help="Largest request in KiB (default 1024).")] = None,
    collect: Annotated[Path | None, typer.Option(help="Folder for sampled requests whose senders consent to training; docs/SERVING.md.")] = None,
    collect_share: Annotated[float | None, typer.Option(help="Share of them that is kept (default 0.05).")] = None,
    stop_s: Annotated[float | None, typer.Option(help="Seconds that answers under way have to end after SIGTERM (default 30).")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the engine; OMP_NUM_THREADS, else one per core.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Listen, and answer 503, until the model exists.")] = False,
) -> None:
    """Serve a model over OpenAI's interface: chat, completions, streaming, logprobs, models, health, metrics."""
    with errors_told():
        from components.schema.serving import ServeConfig

        options = ServeConfig.asked(
            "serve", model=model, port=port, host=host or os.environ.get("MODELYARD_HOST"), name=name, engine=engine, canary=canary, canary_share=canary_share, shadow=shadow, keys=key_file,
            running=running, waiting=waiting, context=context, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, body_kib=body_kib, collect=collect,
            collect_share=collect_share, stop_s=stop_s, threads=threads, wait=wait or None,
        )  # fmt: skip
        os.execv(sys.executable, [sys.executable, "-m", "components", "serve", "--options", options.model_dump_json(exclude_unset=True)])


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="Who gets the key.")],
    requests_per_minute: Annotated[int | None, typer.Option(help="Instead of the endpoint's own limit; 0 = no limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Likewise.")] = None,
    file: KeyFile = None,
) -> None:
    """Make a key. It is told once; only its hash is kept."""
    with errors_told():
        from components.serving.keys import add as make
        from components.serving.keys import default_path

        print(make(file or default_path(), name, requests_per_minute, tokens_per_minute))
        print(f"This is the key of {name}; it cannot be told again. Endpoints that run with this file know it within a second; those that were started without keys need a restart", file=sys.stderr)


@keys.command()
def remove(name: Annotated[str, typer.Argument(help="Whose key.")], file: KeyFile = None) -> None:
    """Take a key away; endpoints refuse it within a second."""
    with errors_told():
        from components.serving.keys import default_path
        from components.serving.keys import remove as take_away

        take_away(file or default_path(), name)
        print(f"{name} is refused from now on")


@keys.command("list")
def listed(file: KeyFile = None) -> None:
    """Who has a key, since when, with which limits of their own."""
    with errors_told():
        from components.serving.keys import default_path, read

        for name, key in read(file or default_path()).items():
            limits = ", ".join(f"{count} {what} a minute" for what, count in (("requests", key.requests_per_minute), ("tokens", key.tokens_per_minute)) if count is not None)
            print(f"{name:<24} {key.made}  {limits or 'limits of the endpoint'}")
