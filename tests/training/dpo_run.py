"""Direct preference learning as torchrun starts it: `dpo_run.py CHAT PREFERENCES OUT CONFIG`."""

import json
import sys
from pathlib import Path

from components.schema.posttraining import DPOConfig
from components.schema.recipe import Resources
from components.training import dpo
from components.training.align import Given
from components.training.trainer import Context

if __name__ == "__main__":
    chat, preferences, out = map(Path, sys.argv[1:4])
    context = Context(seed=1, resources=Resources(processes=2, accelerator="cpu", threads=1))
    outcome = dpo.run(DPOConfig(**json.loads(sys.argv[4])), Given(chat, {}, preferences, preferences, lambda programs: []), out, context)
    (out / "figures.json").write_text(json.dumps(outcome.figures))
