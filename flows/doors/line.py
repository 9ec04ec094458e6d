"""A form for each stage of a recipe's line: the recipe's file, the stage's own section, what the machine gives.

A stage runs on the results of earlier stages that stand on disk, as `modelyard stage` does. What a form's section says wins over the file's; a section
left empty is the file's own. The sentences under `Args` are the texts of the forms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.states import State

from components.schema.config import Choice, Config
from components.schema.data import DataConfig
from components.schema.evaluation import EvalConfig
from components.schema.gate import GateConfig
from components.schema.jobs import Run
from components.schema.posttraining import AlignConfig, RewardConfig, SFTConfig
from components.schema.recipe import Recipe, Resources
from components.schema.records import Dataset, Record
from components.schema.training import ModelConfig, PretrainConfig
from flows import approval
from flows.alone import flow_of, known
from flows.data import prepare_data as prepare
from flows.doors.asked import announce
from flows.terminal import recipe_hash

TINY = "recipes/tiny.yaml"


@flow(name="prepare-data", flow_run_name="data {recipe}")
def prepare_data(recipe: str = TINY, data: DataConfig | None = None, resources: Resources = Resources()) -> Dataset:
    """Documents, chats, preference pairs and benchmarks of a recipe; DVC reruns what is not current.

    Args:
        recipe: Recipe file, relative to the project.
        data: The section data; what stands here wins over the file's. None: as the file says.
        resources: What the machine gives. It never changes what is asked for.
    """
    asked, run = _asked("data", recipe, resources, data=data)
    return prepare.fn(asked.data, run)


@flow(name="pretrain", flow_run_name="pretrain {recipe}")
def pretrain(recipe: str = TINY, model: ModelConfig | None = None, pretrain: PretrainConfig | None = None, resources: Resources = Resources()) -> Record:
    """Raw text to a base model, on the recipe's data.

    Args:
        recipe: Recipe file, relative to the project. Its data must be current: run prepare-data first.
        model: The section model; what stands here wins over the file's. None: as the file says.
        pretrain: The section pretrain; what stands here wins over the file's. None: as the file says.
        resources: What the machine gives. It never changes what is asked for.
    """
    return _stage("pretrain", recipe, resources, model=model, pretrain=pretrain)


@flow(name="finetune", flow_run_name="finetune {recipe}")
def finetune(recipe: str = TINY, sft: SFTConfig | None = None, resources: Resources = Resources()) -> Record:
    """Base model to chat model, on the recipe's chats and the base model that stands.

    Args:
        recipe: Recipe file, relative to the project.
        sft: The section sft; what stands here wins over the file's. None: as the file says.
        resources: What the machine gives. It never changes what is asked for.
    """
    return _stage("sft", recipe, resources, sft=sft)


@flow(name="fit-reward-model", flow_run_name="fit-{role}-model {recipe}")
def fit_reward_model(
    recipe: str = TINY, role: Literal["reward", "cost", "judge"] = "reward", section: RewardConfig | None = None, resources: Resources = Resources()
) -> Record:
    """Chat model to a scalar model, on the recipe's preference pairs and the chat model that stands.

    Args:
        recipe: Recipe file, relative to the project.
        role: reward: which answer is better. cost: which does harm. judge: a second opinion that alignment never optimises.
        section: The recipe's section of that role; what stands here wins over the file's. None: as the file says.
        resources: What the machine gives. It never changes what is asked for.
    """
    return _stage(role, recipe, resources, **{role: section})


@flow(name="align", flow_run_name="align {recipe}")
def align(recipe: str = TINY, align: Annotated[AlignConfig | None, Choice()] = None, resources: Resources = Resources()) -> Record:
    """Chat model to aligned policy, against the reward model that stands.

    Args:
        recipe: Recipe file, relative to the project.
        align: The section align, by one of its methods; what stands here wins over the file's. None: as the file says.
        resources: What the machine gives. It never changes what is asked for.
    """
    return _stage("align", recipe, resources, align=align)


@flow(name="evaluate", flow_run_name="evaluate {recipe}")
def evaluate(recipe: str = TINY, evals: EvalConfig | None = None, resources: Resources = Resources()) -> Record:
    """Every model of the line on the recipe's suites.

    Args:
        recipe: Recipe file, relative to the project.
        evals: The section evals; what stands here wins over the file's. None: as the file says.
        resources: What the machine gives. It never changes what is asked for.
    """
    return _stage("evaluate", recipe, resources, evals=evals)


@flow(name="release", flow_run_name="release {recipe}")
def release(recipe: str = TINY, gate: GateConfig | None = None, resources: Resources = Resources()) -> Record | State[Any]:
    """The last model of the line goes through the gate, into the registry.

    Args:
        recipe: Recipe file, relative to the project.
        gate: The section gate; what stands here wins over the file's. None: as the file says.
        resources: What the machine gives. It never changes what is asked for.
    """
    return approval.resumed() or _stage("release", recipe, resources, gate=gate)


def _stage(name: str, recipe: str, resources: Resources, **sections: Config | None) -> Record:
    """The stage's own flow, as part of this run."""
    asked, run = _asked(name, recipe, resources, **sections)
    stage_flow, arguments = flow_of(known(name, asked), asked, run)
    return stage_flow.fn(*arguments)


def _asked(name: str, recipe: str, resources: Resources, **sections: Config | None) -> tuple[Recipe, Run]:
    """The recipe with the form's sections in place of the file's. Errors: BadInput, with one line per problem."""
    raw = Recipe.load(Path(recipe)).model_dump(mode="json")
    told = {section: given.model_dump(mode="json") for section, given in sections.items() if given is not None}
    asked = Recipe.parse({**raw, **told}, f"{recipe} with {', '.join(told)} from the form" if told else recipe)
    announce(asked, resources, ("stage", name))
    return asked, Run(recipe_name=asked.name, recipe_hash=recipe_hash(asked), seed=asked.seed, resources=resources)
