"""A copy of the project in a folder of its own, and the `modelyard` command run there as a user would type it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# The tiny recipe shrunk until every stage takes a second or two; what it learns does not matter here.
MICRO = (
    "data.sources=[{kind: files, path: notes.txt, domain: notes}]",
    "data.curriculum={seed: 1, documents: 400, chats: 200, preferences: 120, benchmark_items: 8}",
    "data.heldout_fraction=0.2",
    "data.tokenizer.vocab_size=400",
    "model={architecture: llama, hidden_size: 32, layers: 1, heads: 2, intermediate_size: 64, context_tokens: 160}",
    "pretrain={steps: 12, batch_size: 4, learning_rate: 1e-3, warmup_steps: 2, heldout_sequences: 4, checkpoint_every_steps: 4}",
    "sft={steps: 8, batch_size: 4, learning_rate: 1e-3, warmup_steps: 2, heldout_chats: 8, checkpoint_every_steps: 4}",
    "reward={steps: 6, batch_size: 4, learning_rate: 1e-3, warmup_steps: 2, heldout_pairs: 8, checkpoint_every_steps: 3}",
    "align={method: ppo, iterations: 2, rollout_size: 4, minibatch_size: 4, epochs: 1, max_new_tokens: 8, heldout_prompts: 4, checkpoint_every_iterations: 1}",
    "evals={suites: [mini_gsm8k, mini_mmlu, mini_humaneval], limit: 2, max_new_tokens: 8, perplexity_sequences: 4}",
)


@dataclass
class Project:
    """A checkout under `folder`, whose home directory is its own too."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def copy_to(cls, folder: Path) -> Project:
        """Tracked and new files of this repository, as a git checkout with one commit."""
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
        names = listed.stdout.split() or [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file() and not p.relative_to(ROOT).parts[0].startswith(".")]
        for name in names:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        for compiled in (*(ROOT / "components").rglob("*.nb[ic]"), *(ROOT / "components").rglob("code.md5")):  # the compiled loops go along: their cache follows the sources' times
            (folder / compiled.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(compiled, folder / compiled.relative_to(ROOT))
        (folder / "notes.txt").write_text("The tide comes in twice a day. " * 50 + "\n\nA second paragraph about boats and harbours.\n")
        project = cls(folder)
        project.git("init", "-q", "-b", "main")
        project.commit("start")
        return project

    def git(self, *words: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(["git", *identity, *words], cwd=self.folder, capture_output=True, text=True, check=True).stdout

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)

    def run(self, *words: str, code: int = 0, timeout_s: float = 280, **popen: Any) -> subprocess.CompletedProcess[str]:
        """`modelyard WORDS` in the project; fails the test with its output where it ends with another code."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *words], cwd=self.folder, env=self.env(), capture_output=True, text=True, timeout=timeout_s, **popen
        )
        assert done.returncode == code, f"modelyard {' '.join(words)} ended with {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done

    def env(self) -> dict[str, str]:
        home = self.folder.parent / "home"
        home.mkdir(exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "MODELYARD_"))}
        return {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "COLUMNS": "160", "MODELYARD_SLOT_LOCKS": str(home / "locks"), **self.environment}

    def recipe(self, *sets: str) -> list[str]:
        """The micro recipe as arguments of `modelyard run`."""
        return ["recipes/tiny.yaml", *(word for s in (*MICRO, *sets) for word in ("--set", s)), "--threads", "1"]

    def summary(self, *sets: str) -> dict[str, Any]:
        """Run the micro recipe and return what `--json` prints last."""
        return json.loads(self.run("run", *self.recipe(*sets), "--json").stdout.splitlines()[-1])
