"""What each suite is: lm-eval's own definition, by its name, on data that lies here.

A suite is any task, group or tag of lm-eval, a definition of one's own in its format, or a mini suite. The definition is taken as it is: prompts, worked
examples, stop strings, filters and metrics are lm-eval's, and no suite has code of its own here. What changes is where its dataset is read:
`datasets.load_dataset`, which every definition ends in, is answered from the benchmarks folder (a snapshot in DVC), then from the mirror that
MODELYARD_HUB_MIRROR names. Nothing asks the network.

The mini suites lay a few lines of ours (tasks/*.yaml) over the official files: a name, the data, and zero worked examples. mini_mmlu is lm-eval's
mmlu_continuation, which compares the likelihood of the four answers in words: models of a few million parameters know answers long before they can point at
them by letter (Gu et al. 2024, OLMES, arXiv:2406.08446).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import datasets
import lm_eval
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from components.schema import catalogue
from components.schema.config import BadInput
from components.schema.data import MiniSuite
from components.schema.evaluation import EvalConfig
from components.schema.records import digest, file_md5

OFFICIAL = catalogue.official()
OURS = Path(__file__).parent / "tasks"
MINI = get_args(MiniSuite)
MINI_OFFICIAL = {"mini_gsm8k": "gsm8k/gsm8k.yaml", "mini_humaneval": "humaneval/humaneval.yaml", "mini_mmlu": "mmlu/continuation/_continuation_template_yaml"}
SUBJECT_SENTENCE = "The following are questions (with answers) about {}.\n\n"  # the official mmlu_continuation tasks' own


def load_tasks(suites: Iterable[str], benchmarks: Path, config: EvalConfig, seed: int, work: Path) -> dict[str, dict[str, Any]]:
    """Each suite as lm-eval's own {"tasks", "groups", "group_map"}, ready for `evaluate`.

    `seed` draws the worked examples; `work` holds what is written on the way. Errors: BadInput where nothing has that name, its data is absent, or it cannot
    be had here.
    """
    own = own_definitions(config)
    loaded = {}
    for suite in suites:
        manager = TaskManager(include_defaults=False)
        for path in _definitions(suite, benchmarks, own, work / "tasks" / suite):
            TaskIndex.process_cfg(load_yaml(path, resolve_func=False), path, manager.task_index)
        with _data(suite, benchmarks, work / "cache"), _explained(suite):
            loaded[suite] = dict(manager.load(suite))
        for task in loaded[suite]["tasks"].values():
            _configure(task, suite, config, seed)
    return loaded


def runs_code(suite: str, config: EvalConfig) -> bool:
    """Whether a suite runs programs that the model wrote. Errors: BadInput where it would run them outside our sandbox."""
    if suite in MINI:
        return suite == "mini_humaneval"
    own = own_definitions(config)
    unsafe = [leaf.task for leaf in catalogue.leaves(suite, own) if leaf.runs_code]
    for path in {path for name, path in catalogue.definitions(suite, own).items() if name in unsafe}:
        if not any(b"code_eval" in code.read_bytes() for code in path.parent.glob("*.py")):
            raise BadInput(
                f"evaluation: suite {suite} runs what the model writes by code of its own ({path.parent.name}), where our sandbox does not reach: it "
                f"would run on this "
                "machine unguarded. Drop it from evals.suites; suites that score by lm-eval's code_eval (humaneval, mbpp) run in the sandbox"
            )
    return bool(unsafe)


def own_definitions(config: EvalConfig) -> Path | None:
    """The folder of a person's own definitions. Errors: BadInput where it is not there."""
    folder = Path(config.definitions) if config.definitions else None
    if folder and not folder.is_dir():
        raise BadInput(
            f"evaluation: evals.definitions={config.definitions} is not a folder, so its suites cannot be measured. The path is relative to "
            f"{Path.cwd()}; correct it"
        )
    return folder


# ---------------------------------------------------------------- definitions


def _definitions(suite: str, benchmarks: Path, own: Path | None, folder: Path) -> list[Path]:
    """The files that lm-eval must know to load a suite; those of a mini suite are written to `folder`."""
    if suite not in MINI:
        return list(catalogue.definitions(suite, own).values())
    folder.mkdir(parents=True, exist_ok=True)
    includes = [str(OFFICIAL / MINI_OFFICIAL[suite]), str(OURS / f"{suite}.yaml")]
    if suite != "mini_mmlu":
        return [_written(folder / f"{suite}.yaml", {"include": includes})]
    paths = [_written(folder / f"{name}.yaml", {"include": includes[:1], **_subject(name)}) for name in subjects(benchmarks)]
    return [*paths, _written(folder / "_mini_mmlu.yaml", {"include": includes[1], "task": [f"mini_mmlu_{path.stem}" for path in paths]})]


def subjects(benchmarks: Path) -> list[str]:
    """The subjects that the curriculum made for mini_mmlu. Errors: BadInput where there are none."""
    root = benchmarks / "modelyard/mini_mmlu"
    found = sorted(path.name for path in root.iterdir() if any(path.glob("test-*.parquet"))) if root.is_dir() else []
    if not found:
        raise BadInput(_absent("mini_mmlu", "modelyard/mini_mmlu", None, [f"{root} has no subject"]))
    return found


def _subject(name: str) -> dict[str, str]:
    words = name.replace("_", " ")
    return {
        "task": f"mini_mmlu_{name}", "task_alias": words, "description": SUBJECT_SENTENCE.format(words),
        "dataset_path": "modelyard/mini_mmlu", "dataset_name": name,
    }  # fmt: skip


def _written(path: Path, definition: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(definition))
    return path


# ---------------------------------------------------------------- data


@contextmanager
def _data(suite: str, benchmarks: Path, cache: Path) -> Iterator[None]:
    """While this is open, datasets by hub id are read from the benchmarks folder or the mirror."""
    official = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        if options.get("data_files"):  # a definition of one's own that brings its files
            return official(path, name, cache_dir=str(cache), **options)
        tried = []
        for folder in _places(path, benchmarks):
            if not folder.is_dir():
                tried.append(f"{folder} does not exist")
                continue
            given = {key: value for key, value in options.items() if key not in ("revision", "trust_remote_code", "token")}
            files = catalogue.split_files(folder, name)
            place = {"path": "parquet", "data_files": files} if files else {"path": str(folder), "name": name}
            try:
                return official(**place, cache_dir=str(cache), verification_mode="no_checks", **given)
            except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetGenerationError) as error:
                tried.append(f"{folder}: {_first_line(error)}")
        raise BadInput(_absent(suite, path, name, tried))

    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = official


def _places(id: str, benchmarks: Path) -> list[Path]:
    """Where a hub id may lie, in the order in which it is looked for."""
    mirror = os.environ.get("MODELYARD_HUB_MIRROR")
    return [benchmarks / id, *([Path(mirror).absolute() / id] if mirror else []), *([Path(id)] if Path(id).is_dir() else [])]


@contextmanager
def _explained(suite: str) -> Iterator[None]:
    """What goes wrong while lm-eval loads a suite, as a sentence. Errors: BadInput."""
    try:
        yield
    except BadInput:
        raise
    except ImportError as error:
        raise BadInput(
            f"evaluation: suite {suite} needs a package that is not installed ({_first_line(error)}), so it cannot be measured. Install it, or drop "
            f"{suite} from evals.suites"
        ) from error
    except Exception as error:  # a definition can fail in as many ways as it has code
        raise BadInput(
            f"evaluation: suite {suite} cannot be loaded ({type(error).__name__}: {_first_line(error)}), so it cannot be measured. "
            "Its data may lack a split or a column that lm-eval's definition reads, or may need the network; compare the dataset with the definition"
        ) from error


def _absent(suite: str, id: str, name: str | None, tried: list[str]) -> str:
    what = f"{id}, configuration {name}," if name else id
    mirror = "" if os.environ.get("MODELYARD_HUB_MIRROR") else "; MODELYARD_HUB_MIRROR is not set"
    return (
        f"evaluation: suite {suite} reads {what} and that cannot be read here ({'; '.join(tried)}{mirror}): it cannot be measured. Add {suite} to "
        f"data.benchmarks and run the "
        "data stages again, point MODELYARD_HUB_MIRROR at a folder that holds it, or drop it from evals.suites"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")


# ---------------------------------------------------------------- settings


def _configure(task: Any, suite: str, config: EvalConfig, seed: int) -> None:
    """Worked examples and, where the configuration says so, the answer's length; everything else stays as lm-eval defines it."""
    shots = config.fewshot.get(suite, task.get_config("num_fewshot") or 0)
    available = _examples(task)
    if shots > available:
        raise BadInput(
            f"evaluation: fewshot.{suite}={shots} asks for more worked examples than {task.task_name} has ({available}), so its prompt "
            f"cannot be built. Use at most {available}"
        )
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(seed)
    if task.OUTPUT_TYPE == "generate_until" and config.max_new_tokens:
        task.set_config("generation_kwargs", {"max_gen_toks": config.max_new_tokens}, update=True)


def _examples(task: Any) -> int:
    """Worked examples that a task can draw from; where it has none of its own lm-eval would take the measured items, and we do not."""
    given = getattr(task, "fewshot_cfg", None)
    has_own = (given and (given.split or given.samples)) or task.has_training_docs() or (task.has_test_docs() and task.has_validation_docs())
    return len(task.sampler.df) if has_own and getattr(task, "sampler", None) else 0


# ---------------------------------------------------------------- what a result depends on


def item_ids(task: Any, limit: int | None) -> list[str]:
    """The md5 of each measured item's content, in lm-eval's order: the same item has the same id in another run."""
    return [digest(_plain(doc)) for doc in islice(task.eval_docs, limit)]


def identity(loaded: dict[str, Any], config: EvalConfig, seed: int, chat: bool, items: dict[str, list[str]]) -> str:
    """md5 of everything but the model that decides a suite's result: definition, data, worked examples and settings. `items` by task, from `item_ids`."""
    own = own_definitions(config)
    code = {path.name: file_md5(path) for path in sorted(own.rglob("*")) if path.is_file() and path.suffix in (".py", ".yaml")} if own else {}
    tasks = {name: {"definition": _definition(task), "items": items[name], "examples": _examples_md5(task)} for name, task in loaded["tasks"].items()}
    return digest({"lm_eval": lm_eval.__version__, "tasks": tasks, "code": code, "seed": seed, "chat": chat, "limit": config.limit})


def _definition(task: Any) -> Any:
    dumped = task.dump_config()
    dumped.get("metadata", {}).pop("config_source", None)  # a path
    dumped.pop("dataset_kwargs", None)
    return _plain(dumped)


def _examples_md5(task: Any) -> str:
    return digest([_plain(doc) for doc in task.sampler.df]) if task.get_config("num_fewshot") else ""


def _plain(value: Any) -> Any:
    """As JSON takes it."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return getattr(value, "__name__", None) or str(value)
