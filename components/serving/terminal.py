"""Talk to a model in the terminal: `modelyard chat models:/modelyard@champion`, or with an endpoint: `modelyard chat http://127.0.0.1:8000`.

The whole conversation goes through the model's own chat template each turn, oldest turns leaving first when the context
is full. Where standard input is no terminal, each line is a message of its own and the answers are printed.
"""

from __future__ import annotations

import json
import os
import queue
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from components.schema.config import BadInput, Unavailable
from components.schema.serving import ChatConfig, is_url
from components.serving.lines import Lines

Turns = list[dict[str, str]]
HELP = "Type a message; /new starts over, /prompt shows what the model reads, /set temperature 0.8 changes an option, /quit leaves."
CHANGEABLE = ("temperature", "top_p", "top_k", "max_new_tokens", "seed")


class Speaker(Protocol):
    """Who answers."""

    title: str

    def prompt(self, turns: Turns) -> tuple[str, int]:
        """The exact text that is read, and its tokens."""

    def room(self, config: ChatConfig) -> int:
        """Tokens that a prompt may have."""

    def answer(self, turns: Turns, config: ChatConfig) -> Iterator[str]:
        """Text as it comes."""


def chat(config: ChatConfig) -> None:
    """Read messages until the end of input or /quit. Errors: BadInput where the model cannot be had."""
    speaker: Speaker = _Endpoint(config.model) if is_url(config.model) else _Model(config)
    if (room := speaker.room(config)) < 1:
        raise BadInput(f"chat: --max-new-tokens {config.max_new_tokens} leaves no room in the model's context of {room + config.max_new_tokens} tokens. Lower it")
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{speaker.title}\n{HELP}")
    first: Turns = [{"role": "system", "content": config.system}] if config.system else []
    turns = list(first)
    while (text := _read(interactive)) is not None:
        word, _, rest = text.strip().partition(" ")
        if word == "/quit":
            return
        if word == "/new":
            turns = list(first)
        elif word == "/prompt":
            _show(speaker, turns)
        elif word == "/set":
            config = _changed(config, rest)
        elif text.strip():
            turns = [*(turns if interactive else first), {"role": "user", "content": text}]
            turns = _fitting(speaker, turns, speaker.room(config), len(first))
            if config.show_prompt:
                _show(speaker, turns)
            turns.append({"role": "assistant", "content": _said(speaker.answer(turns, config))})


def _said(parts: Iterator[str]) -> str:
    """Print an answer while it comes. Ctrl-C ends the answer, not the chat."""
    said = []
    try:
        for part in parts:
            said.append(part)
            print(visible(part), end="", flush=True)
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    print(flush=True)
    return "".join(said)


def _show(speaker: Speaker, turns: Turns) -> None:
    text, count = speaker.prompt(turns)
    print(f"--- the model reads {count} tokens:\n{visible(text)}\n---", file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return "".join(character if character in "\n\t" or character.isprintable() else "\ufffd" for character in text)


def _fitting(speaker: Speaker, turns: Turns, room: int, kept: int) -> Turns:
    """Without its oldest turns, where it would be too long."""
    while len(turns) > kept + 1 and speaker.prompt(turns)[1] > room:
        turns = [*turns[:kept], *turns[kept + 2 :]]
    return turns


def _changed(config: ChatConfig, words: str) -> ChatConfig:
    name, _, value = words.strip().partition(" ")
    if name not in CHANGEABLE:
        print(f"/set knows {', '.join(CHANGEABLE)}", file=sys.stderr)
        return config
    try:
        return ChatConfig.asked("set", **{**config.model_dump(), name: value.strip()})
    except BadInput as error:
        print(error, file=sys.stderr)
        return config


def _read(interactive: bool) -> str | None:
    try:
        return input("> " if interactive else "")
    except (EOFError, KeyboardInterrupt):
        return None


# ---------------------------------------------------------------- a model in this process


class _Model:
    """The endpoint's own engine, for one."""

    def __init__(self, config: ChatConfig) -> None:
        from components.serving.engine import Answer, Piece, Sizes
        from components.serving.own import Own

        folder = _folder(config.model)
        self.pieces: queue.Queue[Piece] = queue.Queue()

        def deliver(pieces: list[tuple[Answer, Piece]]) -> None:
            for _, piece in pieces:
                self.pieces.put(piece)

        self.own = Own(folder, folder.name, "local", Sizes(1, 1, 0), deliver)
        self.title = f"{config.model} from {folder}"

    def prompt(self, turns: Turns) -> tuple[str, int]:
        from components.serving.protocol import Message, Refusal

        try:
            text = self.own.prompt_of([Message(**turn) for turn in turns])
        except Refusal as refusal:
            raise BadInput(f"chat: {refusal.text}") from None
        return text, len(self.own.encoded(text))

    def room(self, config: ChatConfig) -> int:
        return self.own.context - config.max_new_tokens

    def answer(self, turns: Turns, config: ChatConfig) -> Iterator[str]:
        from components.serving.engine import Answer
        from components.serving.sampling import Sampling

        ids = self.own.encoded(self.prompt(turns)[0])[-self.room(config) :]
        seed = int.from_bytes(os.urandom(4)) if config.seed is None else config.seed
        asked = Answer(ids, config.max_new_tokens, Sampling(config.temperature, config.top_p, config.top_k), seed, stops=config.stop)
        self.own.engine.submit([asked])
        try:
            while not (piece := self.pieces.get()).finish:
                yield piece.text
            yield piece.text
        finally:
            self.own.engine.cancel([asked])


def _folder(model: str) -> Path:
    """A checkpoint's folder, from the registry or the disk."""
    if model.startswith("models:/"):
        from components.registry import models

        return models.fetch(model)
    folder = Path(model)
    if not (folder / "config.json").exists():
        raise BadInput(f"chat: {model} is no checkpoint: it has no config.json. Name a folder under .modelyard/stages, models:/modelyard@champion, or an endpoint's address")
    return folder


# ---------------------------------------------------------------- an endpoint


class _Endpoint:
    """Ours, or another that speaks OpenAI's interface; the exact prompt needs vLLM's /tokenize."""

    def __init__(self, url: str) -> None:
        import httpx

        self.root = url.rstrip("/").removesuffix("/v1")
        key = os.environ.get("MODELYARD_CHAT_KEY")
        self.client = httpx.Client(base_url=self.root, timeout=httpx.Timeout(10.0, read=300.0), trust_env=False, headers={"Authorization": f"Bearer {key}"} if key else {})
        first = self._asked("GET", "/v1/models").json()["data"][0]
        self.model, self.context = first["id"], first.get("max_model_len") or 4096
        self.title = f"{self.model} at {self.root}"

    def prompt(self, turns: Turns) -> tuple[str, int]:
        try:
            found = self._asked("POST", "/tokenize", {"model": self.model, "messages": turns}).json()
        except BadInput:
            return "(this endpoint does not tell the exact prompt)", 0
        return found.get("prompt") or "(this endpoint tells only the count)", found["count"]

    def room(self, config: ChatConfig) -> int:
        return self.context - config.max_new_tokens

    def answer(self, turns: Turns, config: ChatConfig) -> Iterator[str]:
        body = {"model": self.model, "messages": turns, "max_tokens": config.max_new_tokens, "temperature": config.temperature, "top_p": config.top_p, "stream": True}
        body |= {name: value for name, value in (("top_k", config.top_k), ("seed", config.seed), ("stop", list(config.stop))) if value}
        with self.client.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                reply.read()
                raise BadInput(f"chat: {self.root} answers {reply.status_code}: {_message(reply.text)}")
            lines = Lines()
            for line in (line for data in reply.iter_bytes() for line in lines.add(data) if line.startswith("data: {")):
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise BadInput(f"chat: {chunk['error']['message']}")
                yield from (choice["delta"].get("content") or "" for choice in chunk["choices"])

    def _asked(self, method: str, path: str, body: Any = None) -> Any:
        import httpx

        try:
            reply = self.client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise Unavailable(f"chat: {self.root} does not answer ({error}). Start it with `modelyard serve`, or correct the address") from None
        if reply.status_code != 200:
            raise BadInput(f"chat: {self.root}{path} answers {reply.status_code}: {_message(reply.text)}. Where it wants a key, put it into MODELYARD_CHAT_KEY")
        return reply


def _message(text: str) -> str:
    """The sentence of an error in OpenAI's shape, else the beginning of what came."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
