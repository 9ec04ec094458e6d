"""Where results are kept besides this machine: read from the environment, the same for every worker of a platform.

    MODELYARD_STORE=s3://bucket/prefix        a folder that all machines see does as well: MODELYARD_STORE=/mnt/shared
    AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY    as every S3 client reads them; never written down by us
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from components.schema.config import BadInput


def address() -> str | None:
    """The store's root without a slash at its end; None where results stay on this machine. Errors: BadInput."""
    text = os.environ.get("MODELYARD_STORE", "").strip().rstrip("/")
    if not text:
        return None
    if text.startswith("s3://"):
        if not text.removeprefix("s3://").strip("/"):
            raise BadInput(f"storage: MODELYARD_STORE={text} names no bucket, so results have nowhere to go. Write s3://BUCKET or s3://BUCKET/PREFIX")
        return text
    path = text.removeprefix("file://")
    if "://" in path or not Path(path).is_absolute():
        raise BadInput(f"storage: MODELYARD_STORE={text} is neither s3://BUCKET/PREFIX nor an absolute folder, so results have nowhere to go. Correct it, or unset it to keep results on this machine")
    return path


def endpoint() -> str | None:
    """The S3 service's own address; None = Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("MLFLOW_S3_ENDPOINT_URL")


def dvc_options() -> dict[str, Any]:
    """DVC's configuration for data on the same store, over what .dvc/config says; empty where there is no store."""
    root = address()
    if root is None:
        return {}
    given = {"endpointurl": endpoint()} if root.startswith("s3://") and endpoint() else {}
    return {"core": {"remote": "store"}, "remote": {"store": {"url": f"{root}/dvc", **given}}}
