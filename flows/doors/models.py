"""Forms beside a recipe's line: any model on any suites, models rated, feedback gathered, noise measured.

The sentences under `Args` are the texts of the forms.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from components.schema.config import BadInput
from components.schema.evaluation import EvalConfig
from components.schema.export import ExportConfig
from components.schema.feedback import FeedbackConfig
from components.schema.gate import NoiseConfig
from components.schema.jobs import Run
from components.schema.rating import RatingConfig
from components.schema.recipe import Recipe, Resources, evals_from
from components.schema.records import Record, digest
from flows import evaluate, export, feedback, noise, rate
from flows.doors.asked import Loader, announce, flow_style, given, joined, like, say
from flows.doors.line import TINY
from flows.terminal import recipe_hash


@flow(name="evaluate-model", flow_run_name="evaluate {model}")
def evaluate_model(model: str, evals: EvalConfig, resources: Resources = Resources()) -> Record:
    """Any model on any suites of lm-eval by their names, read from the mirror of the hub; what was measured already is reused.

    Args:
        model: A folder, models:/NAME/VERSION, or a hub id in the mirror.
        evals: Which suites, and how they are asked.
        resources: What the machine gives. It never changes what is asked for.
    """
    default = EvalConfig(suites=evals.suites).model_dump(mode="json")
    sets = [f"{name}={flow_style(value)}" for name, value in evals.model_dump(mode="json").items() if value != default[name]]
    config = evals_from(evals.suites, sets)  # the same reading as the command's
    say(config, joined(["evaluate", model, *config.suites, *(word for line in sets for word in ("--set", line)), *given(resources)]), "evaluate")
    return evaluate.evaluate_model.fn(config, model, Run(recipe_name="evaluate", resources=resources))


@flow(name="rate-models", flow_run_name="rate {rating.name}")
def rate_models(rating: RatingConfig, resources: Resources = Resources()) -> Record:
    """Models rated by whose answers a reward model, a judge or people find better.

    Args:
        rating: Whose answers are compared, on which prompts, and who decides.
        resources: What the machine gives. It never changes what is asked for.
    """
    _say("rate", RatingConfig.load, rating, rating.name, resources)
    return rate.rate_models.fn(rating, Run(recipe_name=rating.name, seed=rating.seed, resources=resources))


@flow(name="gather-feedback", flow_run_name="feedback {feedback.name}")
def gather_feedback(feedback: FeedbackConfig, resources: Resources = Resources()) -> Record:
    """A critic judges a model's answers by a constitution; the preferences become a dataset that DVC keeps.

    Args:
        feedback: Whose answers are judged, by whom, by which principles, and on which prompts.
        resources: What the machine gives. It never changes what is asked for.
    """
    return _gathered(feedback, resources)


@flow(name="export-model", flow_run_name="export {model} to {form.to}")
def export_model(model: str, form: ExportConfig, licence: str | None = None, resources: Resources = Resources()) -> str:
    """A model in a form that other programs read, checked against the model, with a card made of its records. Gives the folder, under .modelyard/exports.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, or a folder of a model.
        form: Which form, and its own options.
        licence: Licence that you give the model, for the card, such as apache-2.0; empty = none is stated.
        resources: What the machine gives. It never changes what is asked for.
    """
    default = ExportConfig(to=form.to)
    own = {f"--{name.replace('_', '-')}": value for name, value in form if value != getattr(default, name)}
    options = [word for name, value in own.items() for word in ((name,) if value is True else (name, str(value)))]
    say(form, joined(["export", model, "--to", form.to, *options, *(("--licence", licence) if licence else ()), *given(resources)]), "export")
    found = export.export_model.fn(form, model, licence=licence, run=Run(recipe_name="export", resources=resources))
    return str(found.folder) if isinstance(found, export.Exported) else found  # the state of a run that had to stop


@flow(name="measure-noise", flow_run_name="noise {recipe}")
def measure_noise(recipe: str = TINY, retrained: tuple[str, ...] = (), resources: Resources = Resources()) -> Record:
    """The recipe's last model evaluated again and again: how far its scores move by themselves. Kept in recipes/noise/NAME.json.

    Args:
        recipe: Recipe file, relative to the project; its last model must stand.
        retrained: Models of the same recipe with other seeds (folders or models:/...); their noise then counts too.
        resources: What the machine gives. It never changes what is asked for.
    """
    asked = Recipe.load(Path(recipe))
    announce(asked, resources, ("gate", "noise"), [word for name in retrained for word in ("--retrained", name)])
    run = Run(recipe_name=asked.name, recipe_hash=recipe_hash(asked), seed=asked.seed, resources=resources)
    record = noise.measure_noise.fn(*noise.arguments(NoiseConfig(), asked, tuple(retrained), run))
    if isinstance(record, Record):  # else the state of a run that had to stop
        noise.keep(record, asked)
    return record


def _gathered(config: FeedbackConfig, resources: Resources) -> Record:
    _say("feedback", FeedbackConfig.load, config, config.name, resources)
    record = feedback.gather_feedback.fn(config, Run(recipe_name=config.name, seed=config.seed, resources=resources))
    if isinstance(record, Record):  # else the state of a run that had to stop
        feedback.put_under_dvc(record, config.name)
    return record


def _say(word: str, load: Loader, config: RatingConfig | FeedbackConfig, name: str, resources: Resources) -> None:
    """The command from the file that is nearest. Errors: BadInput where no file says anything like it."""
    folder = Path("recipes") / {"rate": "rating", "feedback": "feedback"}[word]
    lines = [line for path in sorted(folder.glob("*.yaml")) if (line := like([word], path, load, config))]
    if not lines:
        raise BadInput(f"{word}: {folder} holds no file that overrides could turn into {digest(config.model_dump(mode='json'))[:8]}, so no command line says the same. Put one there")
    say(config, joined([*min(lines, key=lambda line: len(joined(line))), *given(resources)]), name)
