"""Server-sent events as lines, for whoever reads another server's stream.

    lines = Lines()
    for data in reply.iter_bytes():
        for line in lines.add(data): ...
"""

from __future__ import annotations


class Lines:
    """A stream's bytes as lines, cut where server-sent events are and nowhere else: U+2028 is text, although str.splitlines and httpx cut there."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[str]:
        """The lines that are whole now."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.removesuffix(b"\r").decode("utf-8", "replace") for line in whole]
