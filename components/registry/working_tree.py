"""The code as it stands: the commit, and everything beside it as one patch, new files too.

    found = working_tree(Path.cwd())
    found.commit, found.patch, found.left_out

The patch is made with an index and an object store of its own, so nothing is staged or written in the repository. What is too large
for a tracker, or looks like a secret, is left out and named: a reproduction says that it was.
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

LARGEST_FILE_BYTES = 2 * 2**20
LARGEST_PATCH_BYTES = 16 * 2**20
SECRETS = (".env", ".env.*", "*.env", "*.pem", "*.key", "id_rsa*", "id_ed25519*", "credentials*", "*secret*", ".netrc", "*.token")
GIT_TIMEOUT_S = 60.0


class WorkingTree(NamedTuple):
    """What a checkout holds. Outside of one, commit is None and the rest is empty."""

    commit: str | None = None
    patch: str = ""
    """Against the commit, binary files and new files included; bytes that are not UTF-8 as surrogates."""
    untracked: list[str] = []
    """New files that git does not ignore, relative to the folder."""
    left_out: list[dict[str, Any]] = []
    """New files that are not in the patch: path, bytes, why."""
    prefix: str = ""
    """The folder within its repository; empty at the top."""


def working_tree(root: Path, apart: tuple[str, ...] = ()) -> WorkingTree:
    """Look at the checkout that `root` is in. `apart`: files of `root` that are kept in another way and stay out of the patch."""
    commit = git(root, "rev-parse", "HEAD")
    if commit is None:
        return WorkingTree()
    untracked = (git(root, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    untracked = [name for name in untracked if name and name not in apart]
    kept, left_out = _sorted(root, untracked)
    patch = _patch(root, kept, apart) or ""
    if len(patch) > LARGEST_PATCH_BYTES:
        left_out += [{"path": name, "bytes": (root / name).stat().st_size, "why": "all new files together are too large"} for name in kept]
        patch = _patch(root, [], apart) or ""
    return WorkingTree(commit, patch, untracked, left_out, git(root, "rev-parse", "--show-prefix") or "")


def _sorted(root: Path, names: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """Which new files go into the patch, and which do not, with the reason."""
    kept, left_out = [], []
    for name in names:
        path = root / name
        if not path.is_file() or path.is_symlink():
            continue  # a checkout within the checkout, a socket
        size = path.stat().st_size
        why = "looks like a secret" if any(fnmatch.fnmatch(path.name.lower(), pattern) for pattern in SECRETS) else f"larger than {LARGEST_FILE_BYTES} bytes" if size > LARGEST_FILE_BYTES else None
        if why:
            left_out.append({"path": name, "bytes": size, "why": why})
        else:
            kept.append(name)
    return kept, left_out


def _patch(root: Path, names: list[str], apart: tuple[str, ...]) -> str | None:
    """Everything that differs from HEAD, with these new files."""
    diff = ("HEAD", "--binary", "--no-ext-diff", "--no-color", "--", ":/", *(f":(exclude){name}" for name in apart))
    if not names:
        return git(root, "diff", *diff, strip=False)
    objects = git(root, "rev-parse", "--git-path", "objects")
    assert objects is not None, "there is a commit, so there is a repository"
    with tempfile.TemporaryDirectory(prefix="modelyard-index-") as scratch:
        own = {"GIT_INDEX_FILE": f"{scratch}/index", "GIT_OBJECT_DIRECTORY": scratch, "GIT_ALTERNATE_OBJECT_DIRECTORIES": str((root / objects).resolve())}
        git(root, "read-tree", "HEAD", **own)
        git(root, "add", "--update", ":/", **own)
        git(root, "add", "--pathspec-from-file=-", "--pathspec-file-nul", feed="\0".join(names), GIT_LITERAL_PATHSPECS="1", **own)
        return git(root, "diff", "--cached", *diff, strip=False, **own)


def git(root: Path, *arguments: str, strip: bool = True, feed: str | None = None, **environment: str) -> str | None:
    """git's answer, or None where there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
            input=None if feed is None else feed.encode(errors="surrogateescape"),
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", **environment},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    text = done.stdout.decode(errors="surrogateescape")
    return text.strip() if strip else text
