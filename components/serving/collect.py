"""Requests that may become training data: a share of the chats whose senders consent, without personal data, as files that data.chats reads.

    collector = Collector(Path("data/served"), share=0.05)
    collector.offer(done)            # in the event loop; writing is a thread's work

A line is {"messages": [...], "kind": "served", "model": "modelyard/3", "at": "2026-..."}. Each goes out in one write to a file of its own process and day, so a kill
tears none but perhaps the last, and several endpoints may share a folder.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.data.filtering.pii import KINDS, replaced
from components.serving.own import Done
from components.serving.protocol import CONSENT, ChatRequest, Generation

log = logging.getLogger("modelyard.serving")

MOST_WAITING = 1000
HEADER = "x-modelyard-consent"


class Collector:
    """Keeps what it is offered, or does not; never in the way of an answer."""

    def __init__(self, folder: Path, share: float, draw: Callable[[], float] = random.random) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.share, self.draw = folder, share, draw
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._write, name="collect", daemon=True)
        self._thread.start()

    def offer(self, done: Done, consents: bool) -> None:
        """Keep the first answer of a chat, if its sender consents and the draw says so."""
        asked = done.asked
        if not consents or not isinstance(asked, ChatRequest) or self.draw() >= self.share:
            return
        turns = [*(message.plain() for message in asked.messages), {"role": "assistant", "content": done.texts[0]}]
        line = {"messages": turns, "kind": "served", "model": f"{done.turn.model}/{done.turn.version}", "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            log.warning("collect: %d requests wait to be written already; one was left out", MOST_WAITING)

    def close(self) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    def _write(self) -> None:
        while (line := self._waiting.get()) is not None:
            try:
                self._append(json.dumps(scrubbed(line), ensure_ascii=False) + "\n")
            except OSError as error:
                log.error("collect: %s cannot be written (%s); a request was left out", self.folder, error)

    def _append(self, text: str) -> None:
        path = self.folder / f"served-{time.strftime('%Y%m%d', time.gmtime())}-{os.uname().nodename}-{os.getpid()}.jsonl"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, text.encode("utf-8", "replace"))
            os.fsync(file)
        finally:
            os.close(file)


def scrubbed(line: dict[str, Any]) -> dict[str, Any]:
    """With placeholders for addresses, numbers and keys (components/data/filtering/pii.py), and a count of them."""
    found = [replaced(message["content"], KINDS) for message in line["messages"]]
    messages = [{**message, "content": text} for message, (text, _) in zip(line["messages"], found, strict=True)]
    return {**line, "messages": messages, "placeholders": sum(sum(counts.values()) for _, counts in found)}


def consents(asked: Generation, header: str | None) -> bool:
    """Whether a request says that it may be kept: metadata.consent, or the header."""
    return (asked.metadata or {}).get("consent") == CONSENT or header == CONSENT
