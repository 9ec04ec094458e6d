"""The one door for processes: `python -m components STAGE --config job.yaml`.

The flows come through it, and so do DVC's commands, torchrun, and a person with a debugger:

    python -m components collect --config params.yaml --dataset tiny --out data/tiny/collect        (a data step, as in dvc.yaml)
    python -m components sft --config job.yaml                                                      (a stage, as the flows start it)
    python -m components chat --options '{"model": "models:/modelyard@champion"}'                   (talk to a model)
    python -m components serve --options '{"model": "models:/modelyard@champion"}'                  (an endpoint, until it is told to stop)

Exit codes: 0 done, 1 a defect (with its traceback), 2 bad input (with one message), 3 a service that does not answer, 4 a budget that is spent (each with one message).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import yaml

DATA_STEPS = ("benchmarks", "collect", "clean", "filter", "dedup", "decontaminate", "documents", "chats", "preferences", "overlap", "tokenizer", "tokens", "mix", "card")
STAGES = ("data", "current-data", "plan-data", "fetch-data", "pin-data", "look-at-data", "pretrain", "sft", "reward", "cost", "judge", "ppo", "grpo", "dpo", "best_of_n", "feedback", "rate", "evaluate", "noise", "export", "release")

LAST_WORDS_S = 60.0  # what a stage whose launcher died has for its checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m components", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*DATA_STEPS, *STAGES, "work", "batch", "data-diff", "chat", "serve"), help="what to run")
    parser.add_argument("revisions", nargs="*", help="one or two Git revisions (data-diff)")
    parser.add_argument("--config", type=Path, help="YAML: params.yaml for a data step, a job for a stage")
    parser.add_argument("--dataset", help="which dataset of params.yaml (data steps, data-diff)")
    parser.add_argument("--json", action="store_true", help="print JSON (data-diff)")
    parser.add_argument("--mlflow-run", help="MLflow run id (work)")
    parser.add_argument("--step", type=int, help="optimizer step (batch)")
    parser.add_argument("--out", type=Path, help="folder to write (data steps; a stage's follows from its identity)")
    parser.add_argument("--options", help="JSON: a ServeConfig (serve), a ChatConfig (chat)")
    args = parser.parse_args()
    _end_with_parent()

    from components.schema.config import BadInput, BudgetSpent, Unavailable

    try:
        if args.stage in DATA_STEPS:
            from components.data import steps

            steps.main(args.stage, args.config, args.dataset, args.out)
        elif args.stage == "data-diff":
            from components.data.versioning import differences

            differences.main(args.revisions, args.dataset, args.json)
        elif args.stage == "work":
            _work(args.config, args.out, args.mlflow_run)
        elif args.stage == "batch":
            from components import stages
            from components.schema.jobs import Job

            stages.print_batch(Job.model_validate(yaml.safe_load(args.config.read_text())), args.step)
        elif args.stage == "chat":
            from components.schema.serving import ChatConfig
            from components.serving import terminal

            terminal.chat(ChatConfig.model_validate_json(args.options))
        elif args.stage == "serve":
            from components.schema.serving import ServeConfig
            from components.serving import server

            server.serve(ServeConfig.model_validate_json(args.options))
        else:
            from components import stages
            from components.schema.jobs import Job

            stages.run(args.stage, Job.model_validate(yaml.safe_load(args.config.read_text())))
    except Unavailable as error:
        _say_error(str(error), "unavailable")
        return 3
    except BudgetSpent as error:
        _say_error(str(error), "budget spent")
        return 4
    except BadInput as error:
        _say_error(str(error))
        return 2
    except OSError as error:
        if error.errno != 28:  # ENOSPC
            raise
        _say_error(f"disk: no space left while writing {error.filename or 'a file'}. What was finished is kept. Free some space and run the same command again")
        return 2
    return 0


def _work(config: Path, out: Path, run_id: str) -> None:
    """One training process of a stage; its BadInput is said by the stage."""
    from components import processes, stages
    from components.schema.config import BadInput
    from components.schema.jobs import Job

    try:
        stages.work(Job.model_validate(yaml.safe_load(config.read_text())), out, run_id)
    except BadInput as error:
        processes.tell("error.txt", str(error), out)
        sys.exit(2)
    except Exception:
        processes.tell("trace.txt", traceback.format_exc(), out)
        raise


def _end_with_parent() -> None:
    """A stage whose flow was killed must not train on as an orphan: Linux sends it SIGTERM when the launcher dies, so that it writes a checkpoint and ends."""
    if not (parent := os.environ.get("MODELYARD_PARENT")):
        return
    if sys.argv[1] not in STAGES:  # a part of a stage; what it did ends with the stage's checkpoint
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        return
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the process that started this stage is gone")
    threading.Thread(target=_end_surely, args=(int(parent),), daemon=True).start()


def _end_surely(parent: int) -> None:
    """A stage that hangs hears no SIGTERM: some time after the launcher died its whole group goes."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(LAST_WORDS_S)
    own_group = os.getpgid(0) == os.getpid()
    os.killpg(0, signal.SIGKILL) if own_group else os.kill(os.getpid(), signal.SIGKILL)


def _say_error(text: str, kind: str = "bad input") -> None:
    if os.environ.get("MODELYARD_EVENTS"):
        from components.schema.events import say

        say({"event": "error", "text": text, "kind": kind})
    print(f"error: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
