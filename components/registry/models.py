"""Released models in MLflow's registry: versions, the two aliases, and the folder behind a name.

`challenger` is the version registered last, `champion` the one that passed the gate last. A version carries what decided
about it as tags: identity, scores, the gate's reason; what each item scored stands with its run. A version is registered once
for each identity: a release that was killed halfway and is run again finds what it had done. Where the gate asks a person, the
version waits: `settle` makes it champion, or leaves it. `rollback` gives the alias back to an earlier champion. Every move of it is
kept with the registered model, so that who was champion when, and by whose word, can be told: `champions`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.registry.store import answering, asks_store, client, experiment_id, locked, store_uri
from components.registry.tracking import log_folder, log_inputs
from components.schema.config import BadInput

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

IDENTITY, SCORES = "modelyard.identity", "modelyard.scores"
ACTION, BEFORE, EVIDENCE = "modelyard.action", "modelyard.champion_before", "modelyard.evidence_run"
MOVE = "modelyard.champion."  # with a time after it: one tag of the registered model for each move of the alias
LONGEST_TAG = 5000
CHAMPION, CHALLENGER = "champion", "challenger"
ROLLED_BACK = "rolled_back"  # the action of a version that was champion and is no longer wanted


@asks_store
def release(
    name: str,
    checkpoint: Path,
    run_id: str,
    identity: str,
    scores: Mapping[str, Any],
    action: Literal["promote", "hold", "ask"],
    tags: Mapping[str, str] | None = None,
    inputs: Mapping[str, tuple[str | Path, str]] | None = None,
    evidence: Path | None = None,
) -> str:
    """Register a checkpoint as challenger, and make it champion where the gate said so. Returns its version.

    `evidence`: a folder that goes with the version, for its challengers to be compared with; scores too many for a tag stand there alone.
    """
    text = json.dumps(scores, sort_keys=True)
    tags = {**(tags or {}), IDENTITY: identity, SCORES: text if evidence is None or len(text) <= LONGEST_TAG else "{}"}
    if evidence is not None:
        log_folder(run_id, evidence, "gate")
        tags[EVIDENCE] = run_id
    version = register(name, checkpoint, run_id, tags, inputs)
    _log_scores(name, version, run_id, scores)
    client().update_model_version(name, version, _described(name, version, tags, scores))
    set_alias(name, CHALLENGER, version)
    if action == "promote":
        _crown(name, version, "gate", "the gate", tags.get("modelyard.reason", ""))
    client().set_model_version_tag(name, version, ACTION, action)
    return version


@asks_store
def register(name: str, checkpoint: Path, run_id: str, tags: Mapping[str, str], inputs: Mapping[str, tuple[str | Path, str]] | None = None) -> str:
    """Make a transformers folder a version of `name`, or find the version its identity has already. Returns the version.

    `tags` must hold modelyard.identity.
    """
    identity = tags[IDENTITY]
    tags = {key: str(value) for key, value in tags.items()}
    if too_long := [key for key, value in tags.items() if len(value) > LONGEST_TAG]:
        raise BadInput(f"registry: tag {too_long[0]} of {name} has {len(tags[too_long[0]])} characters and MLflow keeps {LONGEST_TAG}: it would be cut. Shorten it")
    store, experiment = client(), experiment_id()
    if inputs:
        log_inputs(run_id, inputs)
    with locked(), answering(store_uri()):
        if found := _version_with(name, identity):
            for key, value in tags.items():
                store.set_model_version_tag(name, found.version, key, value)
            return str(found.version)
        model = _ready_model(name, identity, checkpoint, run_id, experiment)
        _make_registered_model(name)
        version = store.create_model_version(name, model.model_uri, run_id=run_id, tags=tags, model_id=model.model_id, await_creation_for=0)
        return str(version.version)


@asks_store
def set_alias(name: str, alias: str, version: str) -> None:
    """Point an alias at a version; it leaves the version it was on."""
    client().set_registered_model_alias(name, alias, version)


@asks_store
def champion(name: str) -> dict[str, Any] | None:
    """{"version", "identity", "scores"} of the released version, or None where nothing was released yet."""
    found = _version_at(name, CHAMPION)
    if found is None:
        return None
    return {"version": str(found.version), "identity": found.tags.get(IDENTITY), "scores": json.loads(found.tags.get(SCORES, "{}"))}


@asks_store
def evidence(name: str, version: str) -> Path | None:
    """The folder that was released with a version, downloaded where the store is remote; None where there is none, or none any more."""
    found = _version_numbered(name, version)
    run_id = found and found.tags.get(EVIDENCE)
    if not run_id:
        return None
    with answering(store_uri()):
        if not client().list_artifacts(run_id, "gate"):
            return None
        from mlflow.artifacts import download_artifacts

        return Path(download_artifacts(run_id=run_id, artifact_path="gate", tracking_uri=store_uri()))


@asks_store
def settle(uri: str, approved: bool, who: str, why: str = "", anyway: bool = False) -> str:
    """A person's word on a version that waits: champion from now on, or held for good. Gives what was done, in a sentence.

    Errors: BadInput where nothing waits there, or, unless `anyway`, where the champion is another one by now than the gate compared with.
    """
    found = version_called(uri)
    name, version, action = found.name, str(found.version), found.tags.get(ACTION)
    if action != "ask":
        waiting = [f"models:/{v.name}/{v.version}" for v in _versions(name) if v.tags.get(ACTION) == "ask"]
        was = {"promote": "was promoted already", "hold": "is held", ROLLED_BACK: "was champion and was rolled back"}.get(action or "", "never came to the gate")
        raise BadInput(f"registry: models:/{name}/{version} {was}, so there is nothing to settle. Waiting: {', '.join(waiting) or 'none'}")
    now, before = _version_at(name, CHAMPION), found.tags.get(BEFORE) or "none"
    champion_now = str(now.version) if now else "none"
    if approved and not anyway and champion_now not in (before, version):
        raise BadInput(
            f"registry: the gate compared models:/{name}/{version} with champion {before}, and by now the champion is {champion_now}: nobody has compared these two. "
            f"Compare them (modelyard compare models:/{name}@champion models:/{name}/{version}), then approve with --anyway"
        )
    if approved:
        _crown(name, version, "approved", who, why)
    settled = {"modelyard.settled_by": who, "modelyard.settled_why": why[:LONGEST_TAG], "modelyard.settled_at": _now()}
    for key, value in {**settled, ACTION: "promote" if approved else "hold"}.items():  # the action last: it is what says that this is done
        client().set_model_version_tag(name, version, key, value)
    return f"models:/{name}/{version} is the champion now; before it was {before}" if approved else f"models:/{name}/{version} is held; the champion stays {champion_now}"


@asks_store
def rollback(name: str, who: str, why: str = "", to: str | None = None) -> str:
    """Give the alias champion back to the one before, or to the version `to`. The version that loses it stays registered. Gives what was done, in a sentence.

    Errors: BadInput where there is no champion, none before it, or no such version.
    """
    now = _version_at(name, CHAMPION)
    if now is None:
        raise BadInput(f"rollback: {name} has no champion, so there is nothing to roll back. {_what_there_is(name)}")
    left, target = str(now.version), to or _before(name, str(now.version))
    there = numbers(name)
    if target is None or target not in there:
        what = f"models:/{name}/{target} does not exist" if target else f"models:/{name}/{left} is the first champion that is known"
        raise BadInput(f"rollback: {what}, so the champion stays {left}. Name another version: modelyard rollback {name} --to VERSION, one of {', '.join(there)}")
    if target == left:
        raise BadInput(f"rollback: models:/{name}/{left} is the champion already, so nothing would change. Leave --to out for the champion before it")
    word = {"modelyard.rolled_back_by": who, "modelyard.rolled_back_why": why[:LONGEST_TAG], "modelyard.rolled_back_at": _now(), ACTION: ROLLED_BACK}
    for key, value in word.items():
        client().set_model_version_tag(name, left, key, value)
    _crown(name, target, "rollback", who, why)
    client().set_model_version_tag(name, target, ACTION, "promote")
    return f"models:/{name}/{target} is the champion again; models:/{name}/{left} was rolled back"


@asks_store
def numbers(name: str) -> list[str]:
    """Every version of a registered model, the oldest first."""
    return [str(version.version) for version in _versions(name)]


@asks_store
def champions(name: str) -> list[dict[str, str]]:
    """Every move of the alias, the oldest first: version, how (gate, approved, rollback), who, why, at."""
    if not _registered(name):
        return []
    tags = client().get_registered_model(name).tags
    return [{**json.loads(tags[key]), "at": key.removeprefix(MOVE)} for key in sorted(tags) if key.startswith(MOVE)]


def _crown(name: str, version: str, how: str, who: str, why: str) -> None:
    """Make a version champion and write the move down, first: a kill in between leaves a move that is made when the command is given again."""
    champion = _version_at(name, CHAMPION)
    if champion is not None and str(champion.version) == version:
        return
    moves = champions(name)
    if not (moves and (moves[-1]["version"], moves[-1]["how"]) == (version, how)):
        move = {"version": version, "how": how, "who": who, "why": why[: LONGEST_TAG // 2]}
        client().set_registered_model_tag(name, MOVE + datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%fZ"), json.dumps(move))
    set_alias(name, CHAMPION, version)


def _before(name: str, now: str) -> str | None:
    """Who was champion before `now`. Rolled back twice, the alias goes back two steps, not to and fro."""
    line: list[str] = []
    for move in champions(name):
        version = move["version"]
        if move["how"] == "rollback" and version in line:
            del line[len(line) - line[::-1].index(version) :]
        elif not line or line[-1] != version:
            line.append(version)
    if now in line:
        del line[len(line) - 1 - line[::-1].index(now) :]
    if line:
        return line[-1]
    found = _version_numbered(name, now)
    before = found.tags.get(BEFORE, "none") if found else "none"  # released before moves were kept
    return None if before == "none" else before


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@asks_store
def fetch(uri: str) -> Path:
    """The folder of `models:/name@alias` or `models:/name/3`, downloaded where the store is remote. Errors: BadInput, naming what there is."""
    found = version_called(uri)
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(artifact_uri=client().get_model_version_download_uri(found.name, found.version), tracking_uri=store_uri()))


@asks_store
def look_up(uri: str) -> tuple[str, str, dict[str, str]]:
    """(name, version, tags) of `models:/name@alias` or `models:/name/3`. Errors: BadInput, naming what there is."""
    found = version_called(uri)
    return found.name, str(found.version), dict(found.tags)


@asks_store
def name_and_version(uri: str) -> tuple[str, str]:
    """Which model and version `models:/name@alias` or `models:/name/3` is. Errors: BadInput, naming what there is."""
    found = version_called(uri)
    return found.name, str(found.version)


@asks_store
def released(identity: str) -> tuple[str, dict[str, str]] | None:
    """(models:/NAME/VERSION, tags) of what a release stage of this identity has registered, on whichever machine; None where none has ended."""
    with answering(store_uri()):
        runs = client().search_runs([experiment_id()], f"tags.`modelyard.stage_identity` = '{identity}' and attributes.status = 'FINISHED'", max_results=1)
        versions = client().search_model_versions(f"run_id = '{runs[0].info.run_id}'") if runs else []
    found = max(versions, key=lambda version: int(version.version), default=None)
    return (f"models:/{found.name}/{found.version}", dict(found.tags)) if found else None


@asks_store
def has(name: str, identity: str) -> bool:
    """Whether a version of `name` is the model of this identity."""
    return _version_with(name, identity) is not None


@asks_store
def version_called(uri: str) -> ModelVersion:
    """The version that `models:/name@alias` or `models:/name/3` names. Errors: BadInput, naming what there is."""
    parts = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if parts is None:
        raise BadInput(f"registry: {uri!r} names no model, so nothing can be loaded. Write models:/NAME@ALIAS or models:/NAME/VERSION; {_what_there_is()}")
    name, alias, number = parts.groups()
    found = _version_at(name, alias) if alias else _version_numbered(name, number)
    if found is None:
        raise BadInput(f"registry: {uri} does not exist, so nothing can be loaded. {_what_there_is(name)}")
    return found


def _ready_model(name: str, identity: str, checkpoint: Path, run_id: str, experiment: str) -> LoggedModel:
    """The checkpoint as a logged model of the run: the files whole before it is called READY, and one for each identity."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    store = client()
    found = store.search_logged_models([experiment], f"tags.`{IDENTITY}` = '{identity}' and name = '{name}'")
    model = next(iter(found), None) or store.create_logged_model(experiment, name, run_id, {IDENTITY: identity}, model_type="transformers")
    if model.status != LoggedModelStatus.READY:
        store.log_model_artifacts(model.model_id, str(checkpoint))
        model = store.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    run = store.get_run(run_id)
    if model.model_id not in {output.model_id for output in run.outputs.model_outputs or ()}:
        store.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model


def _log_scores(name: str, version: str, run_id: str, scores: Mapping[str, Any]) -> None:
    """The scores as metrics of the model itself, so that MLflow's pages of models compare versions by them."""
    from mlflow.entities import Metric

    found = _version_numbered(name, version)
    values = {suite: score["score"] for suite, score in scores.items() if isinstance(score.get("score"), int | float)}
    if found and found.model_id and values:
        now = client().get_run(run_id).info.start_time
        client().log_batch(run_id, metrics=[Metric(f"score/{suite}", float(value), now, 0, model_id=found.model_id) for suite, value in values.items()])


def _described(name: str, version: str, tags: Mapping[str, str], scores: Mapping[str, Any]) -> str:
    """What a person reads first on the version's page."""
    rows = [f"| {suite} | {score['score']:.4f} | {score.get('stderr') or 0:.4f} |" for suite, score in scores.items() if isinstance(score.get("score"), int | float)]
    table = "\n".join(["| suite | score | standard error |", "| --- | --- | --- |", *rows[:20]]) if rows else ""
    commands = "\n".join(f"    modelyard {word} models:/{name}/{version}" for word in ("lineage", "reproduce", "chat"))
    return f"{tags.get('modelyard.reason', '')}\n\n{table}\n\n{commands}\n"


def _make_registered_model(name: str) -> None:
    if not _registered(name):
        client().create_registered_model(name)


def _registered(name: str) -> bool:
    return bool(client().search_registered_models(f"name = '{name}'"))


def _versions(name: str) -> list[ModelVersion]:
    return sorted(client().search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))


def _version_with(name: str, identity: str) -> ModelVersion | None:
    return next((version for version in _versions(name) if version.tags.get(IDENTITY) == identity), None)


def _version_numbered(name: str, number: str) -> ModelVersion | None:
    return next((version for version in _versions(name) if str(version.version) == number), None)


def _version_at(name: str, alias: str) -> ModelVersion | None:
    """None where the model or the alias does not exist; a registry that fails is an error, never an answer."""
    from mlflow.exceptions import MlflowException

    with answering(store_uri()):
        try:
            return client().get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def _what_there_is(name: str | None = None) -> str:
    """What could have been meant, for messages."""
    models = sorted(model.name for model in client().search_registered_models())
    if not models:
        return "No model is registered yet: `modelyard run` registers one"
    if name not in models:
        return f"Registered models: {', '.join(models)}"
    aliases = client().get_registered_model(name).aliases
    there = [f"models:/{name}@{alias}" for alias in sorted(aliases)] + [f"models:/{name}/{v.version}" for v in _versions(name)]
    return f"There is: {', '.join(there)}"
