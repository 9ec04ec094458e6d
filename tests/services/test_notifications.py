"""Every channel against a listener of this machine: a webhook that was away, Slack's own block over TLS, and mail."""

from __future__ import annotations

import contextlib
import http.server
import json
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.deployed import begin, deploy, said, until
from tests.services.rig import Rig
from tests.services.stack import free_port

pytestmark = pytest.mark.services

FAILS = '''
from prefect import flow
from prefect.states import Failed

@flow(name="changes")  # as the canary ends
def changes():
    return Failed(name="Changed", message="other bytes")

@flow(name="inner")
def inner():
    raise ValueError("the sky is down")

@flow(name="fails")
def fails():
    inner()
'''


class Listener:
    """An HTTP server that keeps what it is sent."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        heard: list[tuple[str, str]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                heard.append((self.path, self.rfile.read(int(self.headers["Content-Length"])).decode()))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: Any) -> None:
                pass

        self.heard = heard
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        if context:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def subjects(self) -> list[str]:
        return [json.loads(body)["subject"] for _, body in self.heard]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def proxy_to(port: int) -> int:
    """A proxy whose every CONNECT ends at a port of this machine: what asks for hooks.slack.com meets our listener."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            with contextlib.suppress(OSError):
                client, _ = listening.accept()
                threading.Thread(target=relay, args=(client,), daemon=True).start()

    def relay(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", port)) as server:
            while b"\r\n\r\n" not in client.recv(65536):
                pass
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            other = {client: server, server: client}
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    if not (data := ready.recv(65536)):
                        return
                    other[ready].sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    return listening.getsockname()[1]


def certificate(folder: Path, host: str) -> Path:
    """A key and a certificate of its own signing, in one file."""
    path = folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}", "-keyout", str(path), "-out", str(folder / "public.pem")]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + (folder / "public.pem").read_text())
    return path


@pytest.fixture
def mail() -> Iterator[tuple[int, list[Any]]]:
    """A mail server; its port and what it was handed."""
    from aiosmtpd.controller import Controller

    taken: list[Any] = []

    class Keep:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            taken.append(envelope)
            return "250 kept"

    controller = Controller(Keep(), hostname="127.0.0.1", port=free_port())
    controller.start()
    yield controller.port, taken
    controller.stop()


def test_every_channel_hears_of_a_failed_run_once_and_a_webhook_that_was_away_hears_later(tmp_path: Path, mail: tuple[int, list[Any]]) -> None:
    pem = certificate(tmp_path, "hooks.slack.com")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    slack = Listener(free_port(), context)
    hook_port, (mail_port, mailed) = free_port(), mail
    rig = Rig.in_folder(
        tmp_path / "rig",
        MODELYARD_NOTIFY_WEBHOOK=f"http://127.0.0.1:{hook_port}/hook",
        MODELYARD_NOTIFY_SLACK="https://hooks.slack.com/services/T12345678/B12345678/abcdefghijklmnopqrstuvwx",
        MODELYARD_NOTIFY_EMAIL=f"smtp+insecure://127.0.0.1:{mail_port}?from=yard@example.org&to=ada@example.org,bo@example.org",
        HTTPS_PROXY=f"http://127.0.0.1:{proxy_to(slack.server.server_port)}",
        REQUESTS_CA_BUNDLE=str(tmp_path / "public.pem"),
        NO_PROXY="127.0.0.1,localhost",
    )
    (rig.project.folder / "fails.py").write_text(FAILS)
    try:
        rig.start("server")
        assert said(rig, "from flows.notifications import register_blocks; print(register_blocks())").strip() == "webhook, slack, e-mail"
        for part in ("worker", "watch"):
            rig.start(part)
        rig.wait(lambda: rig.api("POST", "/variables/filter", {"variables": {"name": {"like_": "modelyard_notified_"}}}), "the watch to look for the first time")
        time.sleep(2)
        until(rig, begin(rig, deploy(rig, "fails.py:fails", "fails")), "Failed")
        rig.wait(lambda: slack.heard and mailed, "Slack and mail to hear")
        hook = Listener(hook_port)  # the webhook's listener comes up only now
        rig.wait(lambda: hook.heard, "the webhook to hear")
        time.sleep(8)
        (subject,) = hook.subjects()  # the inner run failed as well, and nobody hears of it apart
        assert subject.startswith("Run ") and subject.endswith(" failed") and "the sky is down" in hook.heard[0][1]
        ((path, body),) = slack.heard
        assert path == "/services/T12345678/B12345678/abcdefghijklmnopqrstuvwx" and "the sky is down" in body
        (letter,) = mailed
        assert letter.mail_from == "yard@example.org" and letter.rcpt_tos == ["ada@example.org", "bo@example.org"] and b"the sky is down" in letter.content

        rig.kill("watch")  # what happens meanwhile is told by the next one, once
        tell = "from flows.announce import *; announce(GATE_DECIDED, of_model('models:/mine/3'), {'action': 'hold', 'reason': 'no better'}, once='x')"
        said(rig, tell)
        said(rig, tell)
        rig.start("watch")
        rig.wait(lambda: len(hook.heard) > 1 and len(mailed) > 1 and len(slack.heard) > 1, "the gate's word after a restart of the watch", patience_s=120)
        time.sleep(8)
        assert hook.subjects()[1:] == ["models:/mine/3: the gate says hold"]
        until(rig, begin(rig, deploy(rig, "fails.py:changes", "changes")), "Changed")
        rig.wait(lambda: len(hook.heard) > 2, "a change that the canary found")
        assert hook.subjects()[2].endswith(" found a change") and "other bytes" in hook.heard[2][1]
        hook.close()
    finally:
        rig.stop()
        slack.close()
