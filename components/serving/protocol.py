"""OpenAI's interface as far as it goes here: what a request may hold, and how one is refused.

    asked = read(ChatRequest, body)              # raises Refusal(400) naming the first field that is wrong
    raise Refusal(429, "too many requests", code="rate_limit_exceeded", retry_after_s=3)

A field that is not known is refused by name: an option that is silently left out gives answers that nobody asked for. `ignore_eos`, `top_k` and /tokenize
are vLLM's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from starlette.responses import JSONResponse

KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error", 405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error", 429: "rate_limit_error", 502: "upstream_error", 503: "unavailable_error"}
MOST_STOPS, MOST_CHOICES, MOST_TOP = 16, 16, 20
CONSENT = "training"
"""What metadata.consent says where a request may be kept for training."""

R = TypeVar("R", bound="Request")


class Refusal(Exception):
    """A request that is not answered: status, and why, in a sentence for whoever wrote the client."""

    def __init__(self, status: int, text: str, *, code: str | None = None, field: str | None = None, retry_after_s: float | None = None, reason: str | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.code, self.field, self.retry_after_s = status, text, code, field, retry_after_s
        self.reason = reason or code or {400: "bad_request", 404: "not_found"}.get(status, str(status))

    def body(self) -> dict[str, Any]:
        """OpenAI's shape of an error."""
        return {"error": {"message": self.text, "type": KINDS.get(self.status, "server_error"), "param": self.field, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Whole seconds, rounded up: a client that waits them is let in."""
        return {} if self.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers())


class Request(BaseModel):
    """What every request may hold."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    """The name that /v1/models gives; the only one where it is not said."""
    user: Annotated[str, Field(max_length=512)] | None = None
    """Who asks; the same user is answered by the same arm."""


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    """A last chunk that counts tokens."""


class Generation(Request):
    """What chat and completions have in common."""

    max_tokens: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    ignore_eos: bool = False
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None

    @model_validator(mode="before")
    @classmethod
    def _noughts(cls, values: Any) -> Any:
        """Clients send options at the value that means nothing; 0.0 is 0."""
        if isinstance(values, dict):
            for name in ("frequency_penalty", "presence_penalty"):
                if isinstance(values.get(name), float) and values[name] == 0:
                    values = {**values, name: 0}
        return values

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings; an empty one would end every answer before it begins, and is none."""
        return tuple(filter(None, [self.stop] if isinstance(self.stop, str) else self.stop or ()))

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates read it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Generation):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    response_format: TextFormat | None = None

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many are told with each token; None = nothing is told."""
        return (self.top_logprobs or 0) if self.logprobs else None


class TextFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]


class CompletionRequest(Generation):
    """POST /v1/completions"""

    prompt: str | list[int] | list[str] | list[list[int]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    best_of: Literal[1] | None = None

    @model_validator(mode="after")
    def _scores_whole_answers(self) -> CompletionRequest:
        if self.scores_prompt and self.stream:
            raise ValueError("echo with logprobs is told when the answer is whole. Leave stream out")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or several, alike."""
        one = isinstance(self.prompt, str) or all(isinstance(token, int) for token in self.prompt)
        return [self.prompt] if one else self.prompt  # type: ignore[list-item,return-value]

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's own tokens are told."""
        return bool(self.echo) and self.logprobs is not None

    @property
    def longest(self) -> int | None:
        return self.max_tokens or 16  # OpenAI's

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class TokenizeRequest(Request):
    """POST /tokenize, as vLLM has it; the answer also holds the exact prompt."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool = False

    @model_validator(mode="after")
    def _one_of_them(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


def read(kind: type[R], body: Mapping[str, Any]) -> R:
    """A checked request. Raises Refusal(400)."""
    if not isinstance(body, dict):
        raise Refusal(400, f"the body is a JSON {type(body).__name__} and must be an object", code="invalid_type", reason="bad_request")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = min(error.errors(include_url=False, include_input=False), key=lambda one: one["type"] != "extra_forbidden")
        field = ".".join(str(part) for part in first["loc"] if not _is_branch(part)) or None
        if first["type"] == "extra_forbidden":
            raise Refusal(400, f"{field} is not known here, so it would have no effect. Leave it out", code="unknown_parameter", field=field, reason="bad_request") from None
        raise Refusal(400, f"{field or 'request'}: {first['msg'].removeprefix('Value error, ')}", code="invalid_value", field=field, reason="bad_request") from None


def _is_branch(part: object) -> bool:
    """Whether a part of a place is pydantic's name for one of several types, and not a field's."""
    return (isinstance(part, str) and part in ("str", "int", "float")) or (isinstance(part, str) and "[" in part)
