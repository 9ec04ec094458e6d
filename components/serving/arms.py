"""Arms: main, canary, shadow. Each follows a name, loads what the name points at beside what is in service, and takes over without a dropped request.

    arm = Arm("main", "models:/modelyard@champion", load)
    arm.look()            # in a thread, every few seconds: loads and takes over where the alias moved; True where it did
    arm.version           # what answers now, or None

Answers under way end on the version that they began on; its engine goes when the last has ended.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from components.schema.config import BadInput
from components.schema.serving import ServeConfig, is_url
from components.serving.engine import Deliver, Sizes
from components.serving.own import Own
from components.serving.protocol import Refusal
from components.serving.upstream import Upstream, Vllm

log = logging.getLogger("modelyard.serving")

RETRY_S = 60.0
"""Before a version that could not be loaded is tried again; another version is tried at once."""

Version = Own | Upstream
Load = Callable[["Arm", str, str, Path | None], Version]
"""(arm, name of the model, version, folder) -> loaded and warm."""


class Arm:
    """One of several that may answer."""

    def __init__(self, name: str, asked: str, load: Load, called: str | None = None) -> None:
        self.name, self.asked, self._load, self._called = name, asked, load, called
        self.version: Version | None = None
        self.folder: Path | None = None
        self._failed, self._again = ("", ""), 0.0
        self._looking = threading.Lock()

    def exists(self) -> None:
        """Errors: BadInput where there is no such model, Unavailable where the registry does not answer."""
        self._points_at()

    def look(self) -> bool:
        """Whether another version is in service since. Errors: as `exists`, and BadInput where it cannot be loaded; what was in service stays."""
        with self._looking:
            name, number, fetch = self._points_at()
            now = self.version
            if (now and (now.name, now.version) == (self._called or name, number)) or (self._failed == (name, number) and time.monotonic() < self._again):
                return False
            try:
                self.folder = fetch() if fetch else None
                new = self._load(self, self._called or name, number, self.folder)
            except Exception:
                self._failed, self._again = (name, number), time.monotonic() + RETRY_S
                raise
            self.version = new
        log.info("%s: %s version %s is in service%s", self.name, new.name, new.version, f", in place of {now.version}" if now else "")
        if now:
            now.close()
        return True

    def _points_at(self) -> tuple[str, str, Callable[[], Path] | None]:
        """Name, version and how its folder is had."""
        if is_url(self.asked):
            return self._called or "external", "external", None
        if not self.asked.startswith("models:/"):
            return (*_of_folder(Path(self.asked)), lambda: Path(self.asked))
        from components.registry import models

        name, number = models.name_and_version(self.asked)
        return name, number, lambda: models.fetch(f"models:/{name}/{number}")


def _of_folder(folder: Path) -> tuple[str, str]:
    if not (folder / "config.json").is_file():
        raise BadInput(f"serve: {folder} is no checkpoint: it has no config.json. Name a folder under .modelyard/stages, models:/modelyard@champion, or a server's URL")
    return folder.resolve().name, "local"


class Arms:
    """Which arm answers whom."""

    def __init__(self, config: ServeConfig, load: Load) -> None:
        self.config = config
        behind = config.engine if is_url(config.engine) else config.model
        called = config.name or (_public(config.model) if behind != config.model or is_url(config.model) else None)
        self.main = Arm("main", behind, load, called)
        self.canary = Arm("canary", config.canary, load, config.name or (_public(config.model) if is_url(config.canary) else None)) if config.canary else None
        self.shadow = Arm("shadow", config.shadow, load) if config.shadow else None

    @property
    def all(self) -> list[Arm]:
        return [arm for arm in (self.main, self.canary, self.shadow) if arm]

    def choose(self, model: str | None, who: str | None) -> tuple[Arm, Version]:
        """The arm that a request goes to. `who`: a user or key, who always gets the same one. Raises Refusal(404), Refusal(503)."""
        main, canary = self.main.version, self.canary.version if self.canary else None
        if main is None:
            raise Refusal(503, "no version is in service yet. Ask again in a moment", code="not_ready", retry_after_s=5)
        if canary is not None and canary.fingerprint == main.fingerprint:
            canary = None  # the challenger has become champion
        if model in (None, main.name):
            return (self.canary, canary) if canary is not None and _falls_below(who, self.config.canary_share) else (self.main, main)
        for arm, version in ((self.main, main), (self.canary, canary)):
            if version is not None and model in (*_names(arm, version), self.config.model):
                return arm, version
        raise Refusal(404, f"there is no model {model[:200]!r} here. There is: {', '.join(self.names())}", code="model_not_found", field="model", reason="unknown_model")

    def names(self) -> list[str]:
        """What clients may ask for."""
        found = [self.main.version.name] if self.main.version else []
        return list(dict.fromkeys([*found, *(f"{arm.version.name}/{arm.version.version}" for arm in (self.main, self.canary) if arm and arm.version)]))


def _names(arm: Arm, version: Version) -> tuple[str, ...]:
    return arm.asked, f"{version.name}/{version.version}", f"models:/{version.name}/{version.version}", version.fingerprint


def _public(model: str) -> str:
    """What a model is called where no registry says it."""
    if model.startswith("models:/"):
        return model.removeprefix("models:/").split("@")[0].split("/")[0]
    return "external" if is_url(model) else Path(model).name


def _falls_below(who: str | None, share: float) -> bool:
    """The same person falls on the same side as long as the share stays; a larger share keeps those who were in."""
    if who is None:
        return random.random() < share
    return int.from_bytes(hashlib.sha256(who.encode("utf-8", "surrogateescape")).digest()[:8]) / 2**64 < share


class Loader:
    """How an arm's versions are loaded, by the endpoint's options."""

    def __init__(self, config: ServeConfig, deliver: Deliver, others_busy: Callable[[], bool]) -> None:
        self.config, self.deliver, self.others_busy = config, deliver, others_busy

    def __call__(self, arm: Arm, name: str, version: str, folder: Path | None) -> Version:
        """Loaded and warm. Errors: BadInput, Unavailable."""
        config = self.config
        if folder is None:
            loaded: Version = Upstream(arm.asked, name, config.running)
        elif config.engine == "vllm" and arm.name != "shadow":
            loaded = Vllm(folder, name, version, config.context, config.running)
        else:
            sizes = Sizes(config.running, config.waiting, config.context or 0, config.threads)
            loaded = Own(folder, name, version, sizes, self.deliver, self.others_busy if arm.name == "shadow" else None)
        loaded.warm()
        return loaded
