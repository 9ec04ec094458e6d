"""The endpoint under load, beside plain transformers `generate`: tokens a second with 16 clients, and what 200 clients at once get.

    .venv/bin/python -m benchmarks.serving models:/modelyard-tiny@champion [--clients 16] [--many 200] [--tokens 96] [--rounds 5]

Both sides have one thread and the same prompts and lengths, sampled at temperature 1, in turns within one run: theirs answers one request after the other in this process,
without HTTP; ours is a server process that clients of this process ask over HTTP, streaming and not. Writes the section Serving of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.results import machine, write_section
from components.models.build import load, load_tokenizer

PROMPTS = ("Tom has {} apples and buys {} more. How many apples does Tom have?", "What is {} plus {}?", "Anna reads {} pages a day for {} days. How many pages does she read?", "Where does the hawk number {} of street {} live?")
READY_S = 180.0
TIMEOUT_S = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="models:/NAME@ALIAS or a checkpoint's folder")
    parser.add_argument("--clients", type=int, default=16, help="clients that are compared with plain generate")
    parser.add_argument("--many", type=int, default=200, help="clients at once in the second part")
    parser.add_argument("--tokens", type=int, default=96, help="length of every answer")
    parser.add_argument("--requests", type=int, default=4, help="requests of each client, one after the other")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--dry", action="store_true", help="do not write RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = asyncio.run(measure(options))
    print(text)
    if not options.dry:
        write_section("Serving", text)
        print("written to benchmarks/RESULTS.md; next: change --running and --waiting of `modelyard serve` and look at p95")


async def measure(options: argparse.Namespace) -> str:
    """Everything, as text."""
    with tempfile.TemporaryDirectory() as scratch:
        server, port = started(options.model, Path(scratch))
        try:
            await ready(server, port)
            plain = Plain(options.model, options.tokens)
            rates: dict[str, list[float]] = {"plain generate, one after the other": [], "ours, streaming": [], "ours, whole answers": []}
            for round_ in range(options.rounds + 1):  # the first is for warming up
                found = [plain.rate(options.clients), *[(await load_of(port, options.clients, options.requests, options.tokens, stream)).rate for stream in (True, False)]]
                print(f"round {round_}: {', '.join(f'{name} {rate:.0f}' for name, rate in zip(rates, found, strict=True))} tokens/s", file=sys.stderr, flush=True)
                if round_:
                    for name, rate in zip(rates, found, strict=True):
                        rates[name].append(rate)
            many = {stream: await load_of(port, options.many, options.requests, options.tokens, stream) for stream in (True, False)}
        finally:
            server.terminate()
            server.wait(60)
    return report(options, rates, many)


# ---------------------------------------------------------------- theirs


class Plain:
    """`model.generate`, a request at a time."""

    def __init__(self, model: str, tokens: int) -> None:
        folder = folder_of(model)
        self.model, self.tokenizer, self.tokens = load(folder).eval(), load_tokenizer(folder), tokens

    def rate(self, requests: int) -> float:
        """Tokens a second over some requests."""
        began = time.perf_counter()
        with torch.inference_mode():
            for number in range(requests):
                inputs = self.tokenizer.apply_chat_template(messages(number), add_generation_prompt=True, return_dict=True, return_tensors="pt")
                self.model.generate(**inputs, max_new_tokens=self.tokens, min_new_tokens=self.tokens, do_sample=True, temperature=1.0, top_k=0, pad_token_id=self.tokenizer.pad_token_id)
        return requests * self.tokens / (time.perf_counter() - began)


# ---------------------------------------------------------------- ours


@dataclass
class Load:
    """What some clients got."""

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    wall_s: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.wall_s


def started(model: str, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A server process with one thread; its log goes to standard error's file."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = {"model": model, "port": port, "threads": 1}
    log = (folder / "serve.log").open("wb")
    return subprocess.Popen([sys.executable, "-m", "components", "serve", "--options", json.dumps(asked)], stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}), port


async def ready(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            status, _, _ = await ask(port, b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n")
            if status == "200":
                return
        except OSError:
            pass
        await asyncio.sleep(0.5)
    raise SystemExit("the server did not come up; run `modelyard serve` by hand and look at its log")


async def load_of(port: int, clients: int, requests: int, tokens: int, stream: bool) -> Load:
    """That many clients at once, each with its requests one after the other."""
    load_ = Load()
    began = time.perf_counter()
    await asyncio.gather(*(_client(port, number, requests, tokens, stream, load_) for number in range(clients)))
    load_.wall_s = time.perf_counter() - began
    return load_


async def _client(port: int, number: int, requests: int, tokens: int, stream: bool, load_: Load) -> None:
    for k in range(requests):
        body: dict[str, Any] = {"messages": messages(number * requests + k), "max_tokens": tokens, "ignore_eos": True, "temperature": 1.0, "stream": stream}
        body |= {"stream_options": {"include_usage": True}} if stream else {}
        raw = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n".encode()
        began = time.perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status, answer, first = await ask(port, head + raw)
        except (OSError, TimeoutError) as error:
            load_.statuses[type(error).__name__] += 1
            continue
        load_.statuses[status] += 1
        if status == "200":
            load_.seconds.append(time.perf_counter() - began)
            load_.first.append(first - began)
            load_.tokens += int(answer.rpartition(b'"completion_tokens":')[2].partition(b",")[0])


async def ask(port: int, request: bytes) -> tuple[str, bytes, float]:
    """Status, everything behind the header, and when the first of a text came. Raises OSError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ", 2)[1].decode()
        body, first = b"", 0.0
        length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
        while (len(body) < length) if length is not None else not body.endswith(b"0\r\n\r\n"):
            if not (part := await reader.read(65536)):
                raise ConnectionResetError("the answer broke off")
            body += part
            if not first and (length is not None or (b'"content":' in part and b'"role"' not in part)):
                first = time.perf_counter()
        return status, body, first or time.perf_counter()
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError("no answer") from error
    finally:
        writer.close()


# ---------------------------------------------------------------- told


def report(options: argparse.Namespace, rates: dict[str, list[float]], many: dict[bool, Load]) -> str:
    """Markdown."""
    base = median(rates["plain generate, one after the other"])
    lines = [
        f"{machine()}; one thread each, load {os.getloadavg()[0]:.1f} when ended. {options.model}, answers of {options.tokens} tokens, temperature 1; medians of {options.rounds} turns (slowest to fastest).",
        "", f"| {options.clients} clients | tokens/s | times plain generate |", "|---|---|---|",
        *(f"| {name} | {median(found):.0f} ({min(found):.0f} to {max(found):.0f}) | {median(found) / base:.1f} |" for name, found in rates.items()),
        "", f"| {options.many} clients at once | answered | else, by kind | tokens/s | latency p50, p95 (s) | first token p50, p95 (s) |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for stream, found in many.items():
        other = ", ".join(f"{count} x {kind}" for kind, count in found.statuses.items() if kind != "200") or "none"
        first = f"{_quantile(found.first, 0.5):.2f}, {_quantile(found.first, 0.95):.2f}" if stream else ""
        lines.append(f"| {'streaming' if stream else 'whole answers'} | {found.statuses['200']} | {other} | {found.rate:.0f} | {_quantile(found.seconds, 0.5):.2f}, {_quantile(found.seconds, 0.95):.2f} | {first} |")
    return "\n".join(lines)


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def messages(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": PROMPTS[number % len(PROMPTS)].format(number % 9 + 1, number // 9 % 9 + 1)}]


def folder_of(model: str) -> Path:
    from components.registry import models

    return models.fetch(model) if model.startswith("models:/") else Path(model)


if __name__ == "__main__":
    main()
