"""The stores that the other tests build on: what was written is there after a kill, and strangers are refused."""

from __future__ import annotations

import pytest

from tests.services.stack import ObjectStore, Postgres

pytestmark = pytest.mark.services


def test_postgres_keeps_what_was_committed_when_it_is_killed(postgres: Postgres) -> None:
    postgres.url("kept")
    postgres.query("kept", "CREATE TABLE seen (number int); INSERT INTO seen VALUES (7)")
    postgres.kill()
    postgres.start()
    assert postgres.query("kept", "SELECT number FROM seen") == [(7,)]


def test_the_object_store_keeps_what_it_acknowledged_when_it_is_killed(object_store: ObjectStore) -> None:
    bucket, client = object_store.bucket(), object_store.client()
    client.put_object(Bucket=bucket, Key="some/thing", Body=b"whole")
    object_store.kill()
    object_store.start()
    assert client.get_object(Bucket=bucket, Key="some/thing")["Body"].read() == b"whole"


def test_the_object_store_refuses_a_wrong_secret(object_store: ObjectStore) -> None:
    with pytest.raises(Exception, match="SignatureDoesNotMatch"):
        object_store.client(aws_secret_access_key="guessed").list_buckets()


def test_the_object_store_goes_away_and_comes_back(object_store: ObjectStore) -> None:
    from botocore.config import Config
    from botocore.exceptions import EndpointConnectionError

    impatient = object_store.client(config=Config(retries={"max_attempts": 1}, connect_timeout=2))
    object_store.away()
    try:
        with pytest.raises(EndpointConnectionError):
            impatient.list_buckets()
    finally:
        object_store.back()
    assert impatient.list_buckets()["Buckets"]
