"""What an endpoint is asked to be (which models in which arms, where it listens, how much it takes on), and a chat in the terminal.

    ServeConfig(model="models:/modelyard@champion", port=8000)
    ServeConfig.asked("serve", model="serving.yaml", port=8123)      # its options are in a file
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from components.schema.addresses import is_loopback
from components.schema.config import BadInput, Config, Fraction
from components.schema.files import read_file

URL = re.compile(r"https?://[^\s/]+(/\S*)?")
ENGINES = ("auto", "own", "vllm")


class _Asked(Config):
    """Options of a command."""

    @classmethod
    def asked(cls, command: str, **values: object) -> Self:
        """The options that were given; None = not given. Errors: BadInput, with every problem at once."""
        try:
            return cls.model_validate({key: value for key, value in values.items() if value is not None})
        except ValidationError as error:
            raise BadInput("\n".join(f"{command}: {'.'.join(map(str, one['loc'])) or 'options'}: {one['msg'].removeprefix('Value error, ')}" for one in error.errors())) from None


class ServeConfig(_Asked):
    """An OpenAI-compatible endpoint."""

    model: str
    """Model of the main arm: models:/NAME@ALIAS, models:/NAME/VERSION or a checkpoint's folder."""
    name: str | None = None
    """What clients call it; its registered name, or its folder's, unless told."""
    engine: str = "auto"
    """auto or own: this process. vllm: a child process `vllm serve`. A URL: an OpenAI-compatible server that runs already."""
    canary: str | None = None
    """A second model, or the URL of a server, that answers a share of the requests."""
    canary_share: Fraction = 0.1
    """Share of users (or of keys, or of requests, where no user is named) whom the canary answers."""
    shadow: str | None = None
    """A model that answers again what the main arm answered, in idle time, only to be compared."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 = a free one."""
    keys: Path | None = None
    """File of API keys (modelyard keys add NAME); beside it MODELYARD_SERVE_KEYS is read."""
    wait: bool = False
    """Listen, and answer 503, while the model does not exist yet, instead of ending."""
    poll_s: PositiveFloat = 5.0
    """Seconds between two looks at where the aliases point."""

    running: PositiveInt = 64
    """Answers that are written at once in each arm; more wait."""
    waiting: NonNegativeInt = 256
    """Answers that may wait; beyond, requests are refused with 429."""
    context: PositiveInt | None = None
    """Longest prompt and answer together, in tokens; the model's own unless told."""
    requests_per_minute: NonNegativeInt = 0
    """For each key, or for each client's address where no keys are set; 0 = no limit."""
    tokens_per_minute: NonNegativeInt = 0
    """Prompt and answer together, likewise; 0 = no limit."""
    body_kib: PositiveInt = 1024
    """Largest request in KiB; beyond, 413 before it is read."""
    read_s: PositiveFloat = 15.0
    """Seconds that a client has for a request's header, and again for its body; beyond, 408."""
    write_s: PositiveFloat = 60.0
    """Seconds that a client may leave an answer's next part untaken before it is given up."""
    stop_s: PositiveFloat = 30.0
    """Seconds that answers under way have to end after SIGTERM."""

    collect: Path | None = None
    """Folder for sampled requests whose sender consents to training; none are kept unless told."""
    collect_share: Fraction = 0.05
    """Share of those requests that are kept."""
    threads: NonNegativeInt = 0
    """Threads of the engine; 0 = what OMP_NUM_THREADS or torch says."""

    @classmethod
    def asked(cls, command: str, **values: object) -> Self:
        """As every command is asked; where `model` is a YAML file, the options that it holds, under those that were given. Errors: BadInput."""
        file = str(values.get("model"))
        if file.endswith((".yaml", ".yml")):
            held = read_file(cls, file, (), command, example="canary=models:/modelyard@challenger", compare="the one in docs/SERVING.md")
            values = held.model_dump(exclude_unset=True) | {key: value for key, value in values.items() if value is not None and key != "model"}
        return super().asked(command, **values)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.engine not in ENGINES and not URL.fullmatch(self.engine):
            raise ValueError(f"engine={self.engine!r} is none of {', '.join(ENGINES)} and no URL, so nothing could answer. Write for example --engine http://127.0.0.1:8080/v1")
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


class ChatConfig(_Asked):
    """A chat in the terminal."""

    model: str
    """models:/NAME@ALIAS, models:/NAME/VERSION, a checkpoint's folder, or an endpoint's address; its key is MODELYARD_CHAT_KEY."""
    max_new_tokens: PositiveInt = 96
    """Longest answer, in tokens."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 = always the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the likeliest tokens that together have this probability."""
    top_k: NonNegativeInt = 0
    """Only so many of the likeliest tokens; 0 = all."""
    seed: NonNegativeInt | None = None
    """Decides what is sampled; drawn anew for each answer unless told."""
    system: str | None = None
    """What the model is told first."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    show_prompt: bool = False
    """Whether the exact text that the model reads is shown."""


def is_url(text: str) -> bool:
    """Whether a model is a server that runs elsewhere."""
    return bool(URL.fullmatch(text))
