"""Real servers for tests, on loopback ports of their own: PostgreSQL, and an S3 store (Ceph's object gateway).

    with Postgres(folder) as postgres:                  # up in about 3 s
        postgres.url("prefect", "postgresql+asyncpg")   # the database is made at the first asking, with pg_trgm
        postgres.kill(); postgres.start()               # SIGKILL; again on the same port, with its data

    with ObjectStore(folder) as store:                  # up in about 20 s, 250 MB of memory
        bucket = store.bucket()                         # a new one
        os.environ |= store.environment                 # what boto3, s3fs, DVC and MLflow read
        store.away(); store.back()                      # the gateway refuses connections; and answers again

Debian's programs are run as they are (`infra/debian.sh services` installs them); `missing` says what is not there.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

POSTGRES_PROGRAMS = Path("/usr/lib/postgresql/15/bin")
NEEDED = {
    "postgres": (str(POSTGRES_PROGRAMS / "postgres"), str(POSTGRES_PROGRAMS / "initdb")),
    "object store": ("ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool", "ceph", "radosgw", "radosgw-admin"),
    "redis": ("redis-server",),
    "prometheus": ("prometheus", "promtool"),
    "browser": ("chromium",),
    "containers": ("podman", "buildah"),
}
FEATURE = {"postgres": "services", "object store": "services", "redis": "services", "prometheus": "monitoring", "browser": "browser", "containers": "containers"}


def missing(service: str) -> str | None:
    """Why a test of a service cannot run here, and what to do about it; None where it can."""
    absent = [name for name in NEEDED[service] if not shutil.which(name)]
    return f"{', '.join(Path(name).name for name in absent)} not installed: `sudo infra/debian.sh {FEATURE[service]}`" if absent else None


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what: str, ready: Callable[[], bool], process: subprocess.Popen[Any] | None = None, log: Path | None = None, timeout_s: float = 90) -> None:
    """Ask until it is so. Errors: RuntimeError with the log's end, where the process ended or time ran out."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and not (process and process.poll() is not None):
        with contextlib.suppress(OSError):
            if ready():
                return
        time.sleep(0.1)
    said = log.read_text(errors="replace")[-3000:] if log and log.exists() else ""
    raise RuntimeError(f"{what} did not come up within {timeout_s:.0f} s (exit code {process.poll() if process else None})\n{said}")


def listens(port: int) -> bool:
    """Whether something accepts connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    """Whether an HTTP server is there, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        pass
    return True


class Daemon:
    """A process with a log, in a group of its own, that ends when the tests' process does."""

    def __init__(self, name: str, command: list[str], log: Path, env: dict[str, str] | None = None, user: str | None = None, cwd: Path | None = None) -> None:
        self.name, self.log = name, log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True, env=env, user=user, cwd=cwd, preexec_fn=_end_with_parent
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def send(self, number: int) -> None:
        """To the whole group."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def end(self, number: int = signal.SIGTERM, grace_s: float = 15) -> None:
        """Politely, then surely; returns when it is gone."""
        self.send(number)
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self.process.wait()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; the thread that started us counts as the parent


class Postgres:
    """A PostgreSQL 15 cluster. As root it runs as the user `postgres`, since it refuses to run as root."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder, self.port, self.password = Path(folder), port or free_port(), secrets.token_hex(8)
        self.daemon: Daemon | None = None
        self._made: set[str] = set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Make the cluster where there is none yet, and run it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.user = "postgres" if os.geteuid() == 0 else None
        if not hasattr(self, "data"):
            self._make()
        log = self.folder / "postgres.log"
        command = [str(POSTGRES_PROGRAMS / "postgres"), "-D", str(self.data), "-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=200"]
        self.daemon = Daemon("postgres", command, log, user=self.user, cwd=self.data)
        wait_for("PostgreSQL", self._answers, self.daemon.process, log)
        return self

    def stop(self) -> None:
        """Fast shutdown; data that could not lie in `folder` goes."""
        if self.daemon:
            self.daemon.end(signal.SIGINT)
        if getattr(self, "elsewhere", False):
            shutil.rmtree(self.data, ignore_errors=True)
            del self.data

    def kill(self) -> None:
        """As by a power cut: SIGKILL to the server and its backends. `start` brings it back, with its data."""
        assert self.daemon
        self.daemon.end(signal.SIGKILL)
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # its pid may be another's by now

    def url(self, database: str, driver: str = "postgresql") -> str:
        """The address of a database (made where it does not exist); `driver`: postgresql+asyncpg for Prefect, postgresql+psycopg2 for MLflow."""
        if database not in self._made:
            self._create(database)
        return f"{driver}://modelyard:{self.password}@127.0.0.1:{self.port}/{database}"

    def query(self, database: str, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        with contextlib.closing(self._connect(database)) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def _make(self) -> None:
        self.elsewhere = bool(self.user) and not _others_may_enter(self.folder)  # pytest's own folders are closed to other users
        self.data = Path(tempfile.mkdtemp(prefix="modelyard-postgres-")) if self.elsewhere else self.folder / "postgres"
        self.data.mkdir(exist_ok=True)
        self.data.chmod(0o700)
        password = self.data.with_name(self.data.name + ".password")
        password.write_text(self.password)
        if self.user:
            account = pwd.getpwnam(self.user)
            for path in (self.data, password):
                os.chown(path, account.pw_uid, account.pw_gid)
        command = [str(POSTGRES_PROGRAMS / "initdb"), "-D", str(self.data), "-U", "modelyard", f"--pwfile={password}", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "-N"]
        done = subprocess.run(command, capture_output=True, text=True, user=self.user, cwd=self.data)
        password.unlink()
        if done.returncode:
            raise RuntimeError(f"initdb failed\n{done.stdout}{done.stderr}")

    def _connect(self, database: str) -> Any:
        import psycopg2

        connection = psycopg2.connect(host="127.0.0.1", port=self.port, user="modelyard", password=self.password, dbname=database, connect_timeout=3)
        connection.autocommit = True
        return connection

    def _answers(self) -> bool:
        import psycopg2

        try:
            self._connect("postgres").close()
        except psycopg2.OperationalError:
            return False
        return True

    def _create(self, database: str) -> None:
        if not self.query("postgres", f"SELECT 1 FROM pg_database WHERE datname = '{database}'"):
            self.query("postgres", f'CREATE DATABASE "{database}"')
        self.query(database, "CREATE EXTENSION IF NOT EXISTS pg_trgm")  # Prefect's migrations use it
        self._made.add(database)


def _others_may_enter(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.absolute().parents))


class ObjectStore:
    """S3 by Ceph: a monitor, one OSD in a file, and the object gateway, with cephx keys and one S3 user."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder, self.port, self.mon_port = Path(folder).absolute(), port or free_port(), free_port()
        self.access_key, self.secret_key = "modelyard", secrets.token_hex(16)
        self.daemons: dict[str, Daemon] = {}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What clients read: boto3 and s3fs (AWS_…), MLflow (MLFLOW_S3_ENDPOINT_URL). DVC needs `endpointurl` in its remote, or AWS_ENDPOINT_URL."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> Self:
        """Make the cluster where there is none yet, and run it; what was stored before is there."""
        new = not (self.folder / "ceph.conf").exists()
        if new:
            self._make_monitor()
        self._run("mon", ["ceph-mon", "-i", "a"])
        if new:
            self._make_osd()
        self._run("osd", ["ceph-osd", "-i", "0"])
        if new:
            self._make_gateway()
        self.back()
        return self

    def stop(self) -> None:
        """The gateway first, then the OSD, which tells the monitor, then the monitor."""
        for name in ("gateway", "osd", "mon"):
            if daemon := self.daemons.pop(name, None):
                daemon.end(signal.SIGKILL if name == "gateway" else signal.SIGTERM, grace_s=8)  # it holds no state, and takes seconds to say goodbye

    def kill(self) -> None:
        """As by a power cut. `start` brings it back, with what it had acknowledged."""
        for daemon in self.daemons.values():
            daemon.end(signal.SIGKILL)
        self.daemons.clear()

    def away(self) -> None:
        """Connections are refused from now on."""
        self.daemons.pop("gateway").end(signal.SIGKILL)

    def back(self) -> None:
        """The gateway answers (again) on the same port."""
        daemon = self._run("gateway", ["radosgw", "-n", "client.rgw", f"--rgw_frontends=beast endpoint=127.0.0.1:{self.port}", "--rgw_thread_pool_size=32"])
        wait_for("Ceph's object gateway", lambda: answers(self.endpoint), daemon.process, daemon.log)

    def client(self, **options: Any) -> Any:
        """A boto3 client as the S3 user."""
        import boto3

        keys = {"aws_access_key_id": self.access_key, "aws_secret_access_key": self.secret_key, "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.endpoint, **{**keys, **options})

    def bucket(self, name: str | None = None) -> str:
        """A bucket, new where no name is given."""
        name = name or f"b-{secrets.token_hex(4)}"
        self.client().create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Every object's key."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    # ------------------------------------------------------------ the cluster

    def _run(self, name: str, command: list[str]) -> Daemon:
        daemon = self.daemons.get(name)
        if not daemon or not daemon.running:
            daemon = self.daemons[name] = Daemon(name, [command[0], "-f", "-c", str(self.folder / "ceph.conf"), *command[1:]], self.folder / f"{name}.log", cwd=self.folder)
        return daemon

    def _tool(self, *command: str, given: str | None = None, timeout_s: float = 60) -> str:
        """A tool's standard output. Errors: RuntimeError with what it said."""
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, input=given, timeout=timeout_s)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed\n{done.stdout}{done.stderr}")
        return done.stdout

    def _ceph(self, *words: str, given: str | None = None) -> str:
        return self._tool("ceph", "-c", str(self.folder / "ceph.conf"), "-k", str(self.folder / "admin.keyring"), "--connect-timeout", "40", *words, given=given)

    def _make_monitor(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        fsid = str(uuid.uuid4())
        for name in ("mon", "osd", "run"):
            (self.folder / name).mkdir()
        (self.folder / "ceph.conf").write_text(CEPH_CONF.format(folder=self.folder, fsid=fsid, mon_port=self.mon_port))
        everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
        self._tool("ceph-authtool", "--create-keyring", "mon.keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self._tool("ceph-authtool", "--create-keyring", "admin.keyring", "--gen-key", "-n", "client.admin", *everything)
        self._tool("ceph-authtool", "mon.keyring", "--import-keyring", "admin.keyring")
        self._tool("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{self.mon_port}]", "--fsid", fsid, "monmap")
        self._tool("ceph-mon", "--mkfs", "-c", "ceph.conf", "-i", "a", "--monmap", "monmap", "--keyring", "mon.keyring")

    def _make_osd(self) -> None:
        number = str(uuid.uuid4())
        key = self._tool("ceph-authtool", "--gen-print-key").strip()
        self._ceph("osd", "new", number, "-i", "-", given=json.dumps({"cephx_secret": key}))
        (self.folder / "osd" / "keyring").write_text(f"[osd.0]\n\tkey = {key}\n")
        self._tool("ceph-osd", "--mkfs", "-c", "ceph.conf", "-i", "0", "--osd-uuid", number)  # the same uuid, or it is not let in

    def _make_gateway(self) -> None:
        key = self._ceph("auth", "get-or-create", "client.rgw", "mon", "allow rw", "osd", "allow rwx")
        (self.folder / "rgw.keyring").write_text(key)
        keys = (f"--access-key={self.access_key}", f"--secret-key={self.secret_key}")
        self._tool(
            "radosgw-admin", "-c", str(self.folder / "ceph.conf"), "-k", str(self.folder / "admin.keyring"), "user", "create", "--uid=modelyard", "--display-name=modelyard", *keys, timeout_s=120
        )


CEPH_CONF = """\
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = [v2:127.0.0.1:{mon_port}]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
run_dir = {folder}/run
admin_socket =
pid_file =
log_to_stderr = true
log_to_file = false
mon_cluster_log_to_file = false
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
# One copy of everything on one OSD: a store for tests.
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_warn_on_pool_no_redundancy = false
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_max_pg_per_osd = 1000
mon_osd_full_ratio = 0.99
mon_osd_nearfull_ratio = 0.98
mon_data_avail_warn = 1
mon_data_avail_crit = 1
rgw_enable_usage_log = false

[mon]
mon_data = {folder}/mon

[osd]
osd_data = {folder}/osd
keyring = {folder}/osd/keyring
osd_objectstore = bluestore
bluestore_block_size = 10737418240
bluestore_block_create = true
bluestore_fsck_on_mount = false
osd_memory_target = 939524096
osd_op_num_shards = 1
osd_op_num_threads_per_shard = 2

[client.rgw]
keyring = {folder}/rgw.keyring
rgw_data = {folder}/run
# Gateways tell each other about changes; one that was killed would be waited for, 20 s at every new bucket.
rgw_cache_enabled = false
"""
