"""What endpoints say: models, answers as they come, and the exact prompt; and where people rank answers.

    serving.models()                                     # [Model(name="modelyard-tiny@champion", url="http://127.0.0.1:8000")]
    for piece in serving.answer(model, messages, {}): print(piece, end="")

Any endpoint that speaks as OpenAI's will do; several stand in MODELYARD_SERVING_URL with commas between them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from dashboards.services import web

ANSWER_S = 300.0


@dataclass(frozen=True)
class Model:
    """A model that an endpoint answers with."""

    name: str
    url: str


def urls() -> list[str]:
    """Where endpoints are."""
    given = os.environ.get("MODELYARD_SERVING_URL", "http://127.0.0.1:8000")
    return [one.strip().rstrip("/").removesuffix("/v1") for one in given.split(",") if one.strip()]


def feedback_page() -> str:
    """Where people rank answers, by the name by which whoever reads this reached us."""
    return web.seen_from(os.environ.get("MODELYARD_FEEDBACK_PAGE", "http://127.0.0.1:8700"), st.context.headers.get("Host"))


def models(key: str = "") -> tuple[list[Model], list[str]]:
    """Every endpoint's models, and a sentence for each endpoint that does not tell them."""
    found, problems = [], []
    for url in urls():
        try:
            found += [Model(one["id"], url) for one in _ask("GET", url, "/v1/models", key).json()["data"]]
        except web.Refused:
            problems.append(f"The endpoint at {url} asks for a key (`modelyard keys add NAME` makes one). Type it below.")
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(str(error) if isinstance(error, OSError) else f"What answers at {url} is no endpoint: it names no models.")
    return found, problems


def prompt(model: Model, messages: Sequence[Mapping[str, str]], key: str = "") -> dict[str, Any]:
    """What the model is really given: prompt (None where the endpoint does not tell), count, max_model_len. Errors: Away."""
    told = _ask("POST", model.url, "/tokenize", key, json={"model": model.name, "messages": list(messages), "add_generation_prompt": True}).json()
    return {name: told.get(name) for name in ("prompt", "count", "max_model_len")}


def answer(model: Model, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any], key: str = "") -> Iterator[str]:
    """Pieces of the answer as they come. Errors: Away, with the endpoint's own words where it refuses."""
    import openai

    asking = openai.OpenAI(base_url=f"{model.url}/v1", api_key=key or "none", timeout=ANSWER_S, max_retries=0, http_client=web.client())
    try:
        with asking.chat.completions.create(model=model.name, messages=list(messages), stream=True, **sampling) as stream:
            for piece in stream:
                if piece.choices and (text := piece.choices[0].delta.content):
                    yield text
    except openai.APIStatusError as error:
        raise web.Away(f"{model.url} refused: {error.message}") from error
    except openai.OpenAIError as error:
        raise web.Away(f"{model.url} stopped answering ({type(error).__name__}). What came stands above.") from error


def _ask(method: str, url: str, path: str, key: str, **options: Any) -> Any:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return web.ask("The endpoint", method, url + path, headers=headers, **options)
