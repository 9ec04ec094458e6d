"""Records: what a stage was given, what it made, and the identity that ties the two together.

A stage's identity is the hash of its config, its inputs' identities and its revision; its output folder is named by it.
`record.json` is written last, so its presence means the folder is complete. Its hash leaves out `execution` (times,
speeds, run ids: what differs between two runs of the same thing), so two runs of one recipe end with equal hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from components.schema.config import BadInput, Config

# Bumped by hand when what a stage does changes its meaning; a bump makes every stored result of that stage run anew.
REVISIONS = {
    "data": 1, "pretrain": 2, "sft": 4, "reward": 3, "cost": 1, "judge": 1, "ppo": 3, "grpo": 1, "dpo": 1, "best_of_n": 1, "feedback": 1, "rate": 1, "evaluate": 4, "noise": 1, "export": 1, "release": 3,
}  # fmt: skip


def home() -> Path:
    """Where everything that runs leave behind is kept: stage outputs, Prefect's and MLflow's databases, logs."""
    return Path(os.environ.get("MODELYARD_HOME", ".modelyard")).absolute()


def digest(value: Any) -> str:
    """The md5 of a JSON-able value, independent of key order."""
    return hashlib.md5(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_md5(path: Path) -> str:
    """The md5 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


class File(Config):
    """One output file as it was when its stage ended."""

    md5: str
    size: int
    """Bytes."""


class Artifact(Config):
    """Something a stage can read: a folder, and the identity of what is in it."""

    path: str
    identity: str


class Sample(Config):
    """One example a person can read: what went in and what came out."""

    prompt: str
    output: str


class Record(Config):
    """What one stage did."""

    stage: str
    identity: str
    revision: int
    config: dict[str, Any]
    """The part of the recipe that defines this stage, seed included."""
    inputs: dict[str, str]
    """Identity of every input."""
    files: dict[str, File]
    """Every output file, by its path in the stage's folder."""
    figures: dict[str, Any]
    """What came out, in numbers: the same on every run of the same stage on the same machine."""
    samples: tuple[Sample, ...] = ()
    """A few outputs to read."""
    execution: dict[str, Any] = {}
    """What differs from run to run: seconds, tokens per second, threads, versions, MLflow run id. Not part of the hash."""

    @property
    def hash(self) -> str:
        """md5 over everything but `execution`."""
        return digest(self.model_dump(mode="json", exclude={"execution"}))

    @property
    def folder(self) -> Path:
        return folder_of(self.stage, self.identity)

    def artifact(self) -> Artifact:
        """This record's output as the input of a later stage."""
        return Artifact(path=str(self.folder), identity=self.identity)

    def write(self, folder: Path) -> None:
        """Write record.json whole or not at all."""
        temporary = folder / "record.json.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(self.model_dump_json(indent=2))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / "record.json")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and parse a folder's record. Errors: BadInput where it is absent or damaged."""
        path = folder / "record.json"
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BadInput(f"record: {path} does not exist: the stage has not finished. Run it with `modelyard run`") from None
        except ValueError as error:
            raise BadInput(f"record: {path} is damaged ({str(error).splitlines()[0]}). Delete {folder} and run again: only this stage is redone") from None

    def damage(self) -> str | None:
        """None where every file stands with its size and md5, else a sentence that names the first that does not."""
        for name, file in self.files.items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != file.size:
                return f"{name} has {path.stat().st_size} bytes instead of {file.size}"
            if file_md5(path) != file.md5:
                return f"{name} has other bytes than when it was made"
        return None


class Outcome(Config):
    """What a stage's `run` hands back; `components.stages` turns it into the record."""

    figures: dict[str, Any]
    samples: tuple[Sample, ...] = ()
    execution: dict[str, Any] = {}


def identity_of(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The identity of a stage's result. `inputs` maps each input's name to its identity."""
    return digest({"stage": stage, "revision": REVISIONS[stage], "config": dict(config), "inputs": dict(inputs)})


def folder_of(stage: str, identity: str) -> Path:
    """Where a stage's result is kept."""
    return home() / "stages" / f"{stage}-{identity[:16]}"


class Part(Artifact):
    """One DVC-tracked output of the data stages; its identity is DVC's own md5."""

    counts: dict[str, int] = {}
    """Rows, tokens, bytes, and what was dropped by reason."""


class Dataset(Config):
    """Everything the data stages made: what travels on into training and evaluation."""

    name: str
    tokenizer: Part
    tokens: Part
    mix: Part
    chats: Part
    preferences: Part
    benchmarks: Part
    overlap: Part
    card: Part
