"""Bytes to bytes: sources in, tokenizer, token shards, chats, preference pairs and benchmarks out. No torch here.

docs/DATA.md is the way through it; `steps.py` lists the steps in their order, one package or module each.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path


def _forget_stale_machine_code() -> None:
    """numba looks only at the file of the function it kept compiled, not at the files whose functions were compiled into it.

    So the digest of all our code is kept beside the compiled loops, and where it differs, they go.
    """
    root = Path(__file__).parent
    digest = hashlib.md5(b"".join(path.read_bytes() for path in sorted(root.rglob("*.py")))).hexdigest()
    stamp = root / "__pycache__" / "code.md5"
    with contextlib.suppress(OSError):  # a folder that cannot be written holds no compiled code either
        if not stamp.exists() or stamp.read_text() != digest:
            for compiled in root.rglob("*.nb[ic]"):
                compiled.unlink(missing_ok=True)
            stamp.parent.mkdir(exist_ok=True)
            stamp.write_text(digest)


_forget_stale_machine_code()
