"""Runs an endpoint until it is told to stop: `python -m components serve`, which `modelyard serve` starts.

The first SIGTERM or Ctrl-C lets what is under way end, and answers what is new with 503; a second one does not wait.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from types import FrameType

import torch
import uvicorn

from components.schema.serving import ServeConfig
from components.serving.app import make_app
from components.serving.arms import Arms
from components.serving.door import protocol
from components.serving.endpoint import Endpoint

log = logging.getLogger("modelyard.serving")

SWITCH_S = 0.0005
"""How long a thread may keep the interpreter from the engine's; Python's own 5 ms are longer than a step of a small model."""


def serve(config: ServeConfig) -> None:
    """Until it is told to stop. Errors: BadInput where it cannot begin."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    endpoint = Endpoint(config)
    if not config.is_local:
        log.info("%s lets other machines reach the endpoint, so everybody needs a key (modelyard keys add NAME). Traffic is not encrypted: put a proxy with TLS before it", config.host)
    if not config.wait:
        for arm in Arms(config, lambda *_: None).all[:1]:  # the others may come later
            arm.exists()
    if config.threads:
        torch.set_num_threads(config.threads)
    sys.setswitchinterval(SWITCH_S)
    configured(endpoint).run()


def configured(endpoint: Endpoint) -> Server:
    """A server of this endpoint that was not started yet."""
    config = endpoint.config
    return Server(
        uvicorn.Config(
            make_app(endpoint), host=config.host, port=config.port, http=protocol(config.read_s, lambda reason: endpoint.metrics.refused.labels(reason).inc()), ws="none",
            log_level="warning", access_log=False, timeout_keep_alive=30, timeout_graceful_shutdown=2, server_header=False, backlog=4096,
        ), endpoint,
    )  # fmt: skip


class Server(uvicorn.Server):
    """Says where it listens, and ends when its requests have."""

    def __init__(self, config: uvicorn.Config, endpoint: Endpoint) -> None:
        super().__init__(config)
        self.endpoint = endpoint
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            log.info("listening on http://%s:%d/v1", self.config.host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._ending or self.endpoint.draining:
            self.should_exit = True
            return
        self.endpoint.draining = True
        asyncio.get_running_loop().call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self) -> None:
        self._ending = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        await self.endpoint.end()
        self.should_exit = True
