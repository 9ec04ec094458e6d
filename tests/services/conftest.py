"""Servers for the tests marked `services`: started once, at the first test that asks, and stopped at the end.

A test that needs one takes it as a fixture, and is skipped, with what to install, where its program is not here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.conftest import page  # noqa: F401  a fixture
from tests.services import stack


def need(service: str) -> None:
    """Skip where a service's programs are not installed; `service` is a key of `stack.NEEDED`."""
    if reason := stack.missing(service):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Postgres]:
    """A PostgreSQL cluster; each test asks for databases of its own name."""
    need("postgres")
    with stack.Postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.ObjectStore]:
    """An S3 store; each test makes a bucket of its own."""
    need("object store")
    with stack.ObjectStore(tmp_path_factory.mktemp("ceph")) as server:
        yield server
