"""Commands about the gate: what decides about a release."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.schema.jobs import Run
from components.schema.recipe import Recipe, Resources
from flows.terminal import On, RecipePath, Sets, Threads, errors_told, flows_watched, load, make_console, recipe_hash, root

if TYPE_CHECKING:
    from components.schema.gate import GateConfig

app = typer.Typer(no_args_is_help=True)


@app.command("decide")
def gate_decide(
    challenger: Annotated[str, typer.Argument(help="An evaluate stage's folder, or models:/NAME@ALIAS.")],
    champion: Annotated[str | None, typer.Option(help="The same of the champion; none = as the first release.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file, such as recipes/policies/default.yaml.")] = None,
    noise: Annotated[Path | None, typer.Option(help="Noise floor, as `modelyard gate noise` wrote it.")] = None,
    role: Annotated[str | None, typer.Option(help="base, chat or policy; the last model of the line unless told.")] = None,
) -> None:
    """Say what a policy would decide about two evaluations, and why. Nothing is registered."""
    with errors_told():
        from flows.gate import show_decision

        show_decision(challenger, champion, _gate_config(policy, noise), role, make_console())


@app.command("power")
def gate_power(
    policy: Annotated[Path | None, typer.Option(help="Policy file; the default policy unless told.")] = None,
    suite: Annotated[list[str] | None, typer.Option(metavar="NAME=ITEMS[:SCORE[:DISAGREEMENT]]", help="A suite; may be given many times.")] = None,
    report: Annotated[Path | None, typer.Option(help="Take the suites of this evaluate stage's folder.")] = None,
    disagreement: Annotated[float, typer.Option(help="Share of the items that one model has right and the other wrong.")] = 0.2,
    only: Annotated[str | None, typer.Option(help="Change this suite alone.")] = None,
    trials: Annotated[int, typer.Option(help="Simulated evaluations for each true change.")] = 500,
    picture: Annotated[Path | None, typer.Option(help="Draw the power by gain and items to this SVG.")] = None,
) -> None:
    """Say how often the gate promotes better, unchanged and worse models, by simulation."""
    with errors_told():
        from flows.gate import shapes, show_power

        chosen = _gate_config(policy, None).policy
        if suite or report or not picture:
            show_power(chosen, shapes(suite or [], report, disagreement), trials, only, make_console())
        if picture:
            from components.evaluation.power import draw

            draw(chosen, picture, disagreement=disagreement, trials=trials)
            print(f"Power by gain and items: {picture}")


@app.command("noise")
def gate_noise(
    recipe: RecipePath,
    sets: Sets = None,
    retrained: Annotated[list[str] | None, typer.Option(help="A model of the same recipe with another seed (folder or models:/...); its noise then counts too.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the floor is kept; recipes/noise/NAME.json unless told.")] = None,
    threads: Threads = 0,
    on: On = None,
) -> None:
    """Evaluate the recipe's last model again and again: how far its scores move by themselves."""
    with errors_told():
        resolved = load(recipe, sets)
        root()
        _measure_noise(resolved, tuple(retrained or ()), out, Resources.parse(threads, on))


def _measure_noise(recipe: Recipe, retrained: tuple[str, ...], out: Path | None, resources: Resources) -> None:
    """The noise floor of what the recipe releases, kept where a recipe can name it."""
    from components.schema.gate import NoiseConfig

    console = make_console()
    with flows_watched(console) as (_, screen):
        from flows.noise import arguments, keep, measure_noise

        given = Run(recipe_name=recipe.name, recipe_hash=recipe_hash(recipe), seed=recipe.seed, resources=resources)
        record = measure_noise(*arguments(NoiseConfig(), recipe, retrained, given))
    found = screen.results["noise"]["verdict"]
    console.print(f"noise: {found.action}: {found.reason}", highlight=False)
    for suite, spread in record.figures["suites"].items():
        print(f"{suite}: standard deviation {spread['spread']:.4f} over {len(spread['scores'])} evaluations; {spread['flips']:.1%} of the items moved")
    print(f"Next: in the recipe, gate.noise: {keep(record, recipe, out)}")


def _gate_config(policy: Path | None, noise: Path | None) -> GateConfig:
    """The gate's configuration from files. Errors: BadInput."""
    from components.schema.gate import GateConfig, NoiseFloor, Policy

    return GateConfig(policy=Policy.load(policy) if policy else Policy(), noise=NoiseFloor.load(noise) if noise else None)
