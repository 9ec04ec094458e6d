"""`modelyard export`: a released model in a form that other programs read, with its card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.schema.jobs import Run
from components.schema.recipe import Resources
from flows.terminal import On, Threads, errors_told, flows_watched, make_console, root

if TYPE_CHECKING:
    from components.schema.export import ExportConfig
    from flows.export import Exported

app = typer.Typer()

NEXT = {
    "safetensors": "AutoModelForCausalLM.from_pretrained('{folder}'), or upload the folder to a hub as it is",
    "gguf": "llama_cpp.Llama('{folder}/model.gguf'); how to ask it stands in the card",
    "int8": "modelyard chat {folder}",
    "int4": "modelyard chat {folder}",
    "onnx": "onnxruntime.InferenceSession('{folder}/model.onnx')",
    "card": "read {folder}/README.md",
}


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder of a model.")],
    to: Annotated[str, typer.Option(help="safetensors, gguf, int8, int4, onnx, or card: the model card alone.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; under .modelyard/exports unless told. An earlier export there is replaced.")] = None,
    suites: Annotated[list[str] | None, typer.Option(help="int8, int4: suites to measure both models on, from MODELYARD_HUB_MIRROR; those of the release unless told. May be given many times.")] = None,
    numbers: Annotated[str, typer.Option(help="gguf: f32, f16 or q8_0.")] = "f16",
    tokenizer: Annotated[str, typer.Option(help="gguf: inside, or apart = the file reads token ids and tokenizer.json lies beside it.")] = "inside",
    group_size: Annotated[int, typer.Option(help="int4: weights that share a scale: 32, 64 or 128.")] = 32,
    onnx_int8: Annotated[bool, typer.Option("--onnx-int8", help="onnx: also a graph with 8-bit weights.")] = False,
    licence: Annotated[str | None, typer.Option(help="Licence that you give the model, for the card, such as apache-2.0; nothing is stated where you do not.")] = None,
    threads: Threads = 0,
    on: On = None,
) -> None:
    """Write a model in a form that other programs read, check it against the model, and describe it in a card made of its records."""
    with errors_told():
        from components.schema.export import ExportConfig

        config = ExportConfig.asked(to=to, numbers=numbers, tokenizer=tokenizer, group_size=group_size, onnx_int8=onnx_int8)
        root()
        console = make_console()
        with flows_watched(console):
            from flows.export import export_model

            found = export_model(config, model, tuple(suites or ()), str(out) if out else None, licence, Run(recipe_name="export", resources=Resources.parse(threads, on)))
        _tell(found, config)


def _tell(found: Exported, config: ExportConfig) -> None:
    """What was written, what it costs, and what to do next."""
    from components.evaluation.comparison import words

    if found.record:
        figures = found.record.figures
        check = figures.get("check") or figures.get("check_llama_cpp")
        print(f"{config.to}: {figures['bytes']:,} bytes; the weights were {figures['bytes_before']:,}")
        if check:
            print(f"Against the original on {check['positions']:,} positions: largest difference of a logit {check['logit_difference_max']:.3g}, same likeliest token at {check['same_likeliest']:.1%}")
        if timed := found.record.execution.get("ms_per_token"):
            print(f"One answer alone: {timed['exported']:.2f} ms a token; the original {timed['original']:.2f}")
    if found.comparison:
        for suite, row in found.comparison.suites.items():
            print(f"{suite:30} {words.score(row.scores[0])} → {words.score(row.scores[1])}  {words.difference(row.against[1])}  {row.against[1].verdict if row.against[1] else ''}")
    if found.unmeasured:
        print(f"What it costs in score was not measured: {found.unmeasured}")
    print(f"Card: {found.folder}/README.md. Every file with its md5: {found.folder}/export.json\nNext: {NEXT[config.to].format(folder=found.folder)}")
