"""The full official suites through Modelyard and through lm-eval's command line: the same model, settings and machine, in turns; and whether the numbers are
the same.

    MODELYARD_HUB_MIRROR=DIR .venv/bin/python -m benchmarks.evaluation --model FOLDER [--suites gsm8k humaneval mmlu] [--limit N] [--rounds 1]

Each side is a whole process, imports and data included, with two threads. lm-eval's command line reads the mirror by definitions that include the official
ones and change nothing but the place of the data; off-line it cannot load HumanEval's metric, so there it gets one that runs nothing, which is to its
advantage. Prints `ratio NAME VALUE BAR` (its seconds by ours) and writes the section Evaluation of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import yaml

from benchmarks.results import machine, write_section
from components.launch import ENVIRONMENT
from components.schema import catalogue

BARS = {"mmlu": 1.0, "hellaswag": 1.0, "arc_easy": 1.0, "gsm8k": 2.0, "humaneval": 2.0}  # likelihood no slower, generation twice as fast
NEW_TOKENS, BATCH = 64, 64
OURS = """
import json, sys, tempfile
from pathlib import Path
import torch
from components.evaluation import harness
from components.schema.evaluation import EvalConfig
torch.set_num_threads({threads})
config = EvalConfig(suites=({suite!r},), limit={limit}, max_new_tokens={new}, batch_size={batch}, chat_template=False, perplexity_sequences=1)
with tempfile.TemporaryDirectory() as out:
    outcome = harness.run(config, {{"base": Path({model!r})}}, Path(out) / "none", Path({tokens!r}), Path(out), lambda event: None, 1234)
Path({answer!r}).write_text(json.dumps(outcome.figures["scores"]["base"][{suite!r}]))
"""
THEIRS = """
import sys
import evaluate
class Nothing:
    def compute(self, references, predictions, k):
        return {f"pass@{n}": 0.0 for n in k}, {}
official = evaluate.load
evaluate.load = lambda path, *a, **k: Nothing() if path == "code_eval" else official(path, *a, **k)
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a transformers folder")
    parser.add_argument("--suites", nargs="+", default=["gsm8k", "humaneval", "mmlu"])
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tokens = _tokens(Path(folder) / "tokens")
        for suite in options.suites:
            costs: dict[str, list[Cost]] = {"ours": [], "theirs": []}
            for _ in range(options.rounds):
                mine, took = _ours(suite, options, tokens, Path(folder))
                costs["ours"].append(took)
                found, took = _theirs(suite, options, Path(folder))
                costs["theirs"].append(took)
            rows.append(_compared(suite, mine, found, costs))
            print(rows[-1]["line"], flush=True)
    head = [
        "| suite | items | Modelyard: s (CPU s, MiB) | lm_eval: s (CPU s, MiB) | ratio | of CPU s | bar | score, Modelyard | score, lm_eval | the same "
        "to the last digit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    write_section("Evaluation", "\n".join([_about(options, load), "", *head, *(row["line"] for row in rows)]))
    for row in rows:
        print("ratio", row["suite"], f"{row['ratio']:.2f}", BARS.get(row["suite"], ""))


def _about(options: argparse.Namespace, load: float) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lm_eval"))
    parameters = sum(path.stat().st_size for path in options.model.glob("*.safetensors")) / 4e6
    part = f"the first {options.limit} items of each task" if options.limit else "every item"
    return (
        f"{machine()}; {options.threads} threads, load {load:.1f} when begun; {versions}. A model of {parameters:.1f}M parameters, plain text, {part}, "
        f"at most {NEW_TOKENS} new tokens, "
        f"batches of {BATCH}, {options.rounds} round(s) in turns. Seconds are of the whole process, by the clock and of the processor. HumanEval runs "
        f"its programs in the sandbox on our side and not at all on theirs."
    )


def _tokens(folder: Path) -> Path:
    """Held-out text is not the subject: a few tokens."""
    import numpy as np

    folder.mkdir()
    np.full(4096, 100, np.uint16).tofile(folder / "heldout.bin")
    (folder / "tokens.json").write_text(json.dumps({"dtype": "uint16", "vocab_size": 1024}))
    return folder


class Cost(NamedTuple):
    """What a process took."""

    seconds: float
    cpu_seconds: float
    memory_mb: float


def _timed(command: list[str], folder: Path, **more: str) -> Cost:
    environment = {**os.environ, **ENVIRONMENT, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "true", **more}
    log = folder / "stderr.txt"
    began = time.perf_counter()
    with log.open("w") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[:3]} failed:\n{log.read_text()[-3000:]}")
    return Cost(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def _ours(suite: str, options: argparse.Namespace, tokens: Path, folder: Path) -> tuple[dict[str, Any], Cost]:
    answer = folder / "ours.json"
    code = OURS.format(
        suite=suite, limit=options.limit, new=NEW_TOKENS, batch=BATCH, threads=options.threads, model=str(options.model), tokens=str(tokens), answer=str(answer)
    )
    took = _timed([sys.executable, "-c", code], folder)
    return json.loads(answer.read_text()), took


def _theirs(suite: str, options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], Cost]:
    """lm-eval's results of the suite."""
    definitions, out = folder / f"definitions-{suite}", folder / f"theirs-{suite}"
    definitions.mkdir(exist_ok=True)
    mirror = Path(os.environ["MODELYARD_HUB_MIRROR"]).absolute()
    paths = catalogue.definitions(suite)
    for leaf in catalogue.leaves(suite):
        (definitions / f"{leaf.task}.yaml").write_text(yaml.safe_dump({"include": str(paths[leaf.task]), "dataset_path": str(mirror / str(leaf.dataset))}))
    command = [
        sys.executable, "-c", THEIRS, "run", "--model", "hf", "--model_args", f"pretrained={options.model},dtype=float32", "--tasks", suite, "--device", "cpu",
        "--batch_size", str(BATCH), "--include_path", str(definitions), "--output_path", str(out), "--confirm_run_unsafe_code",
        *(["--gen_kwargs", f"max_gen_toks={NEW_TOKENS}"] if suite in ("gsm8k", "humaneval") else []),
        *(["--limit", str(options.limit)] if options.limit else []),
    ]  # fmt: skip
    took = _timed(command, folder, HF_ALLOW_CODE_EVAL="1", OMP_NUM_THREADS=str(options.threads))
    (path,) = out.rglob("results_*.json")
    found = json.loads(path.read_text())["results"][suite]
    path.unlink()
    return found, took


def _compared(suite: str, mine: dict[str, Any], found: dict[str, Any], costs: dict[str, list[Cost]]) -> dict[str, Any]:
    key = mine["metric"] if "," in mine["metric"] else next(name for name in found if name.startswith(f"{mine['metric']},"))
    same = "its metric ran nothing" if suite == "humaneval" else "yes" if found[key] == mine["score"] else f"no: {found[key] - mine['score']:+.2g}"
    ratio, of_cpu = (median(theirs[k] / ours[k] for ours, theirs in zip(costs["ours"], costs["theirs"], strict=True)) for k in (0, 1))
    shown = {
        side: f"{median(c.seconds for c in cost):.0f} ({median(c.cpu_seconds for c in cost):.0f}, {max(c.memory_mb for c in cost):,.0f})"
        for side, cost in costs.items()
    }
    cells = [
        suite, f"{mine['items']:,}", shown["ours"], shown["theirs"], f"{ratio:.2f}", f"{of_cpu:.2f}", f"{BARS.get(suite, '')}",
        repr(mine["score"]), "" if suite == "humaneval" else repr(found[key]), same,
    ]  # fmt: skip
    return {"suite": suite, "ratio": ratio, "line": "| " + " | ".join(cells) + " |"}


if __name__ == "__main__":
    main()
