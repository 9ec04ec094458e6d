"""One training as torchrun starts it: `parallel_run.py OUT RESOURCES CONFIG`, with a tiny Llama on batches made on the spot."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from components.schema.recipe import Resources
from components.schema.training import OptimConfig
from components.training.optim import OptimizedModule
from components.training.trainer import Context, Course, Looks, fit

VOCAB, LENGTH, STEPS = 64, 16, 8


class Counting(OptimizedModule):
    """Next token, of which only some count: rows count different numbers."""

    def __init__(self, config: OptimConfig, dropout: float = 0.0) -> None:
        super().__init__(config)
        torch.manual_seed(3)
        self.model = LlamaForCausalLM(LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=LENGTH,
            attention_dropout=dropout, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        )).train()  # fmt: skip

    def training_step(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, Any]:
        hidden = self.model.model(input_ids=batch["ids"][:, :-1], use_cache=False).last_hidden_state
        logits = hidden @ self.model.lm_head.weight.T  # the weights by themselves, as a fused loss uses them
        losses = cross_entropy(logits.flatten(0, 1), batch["ids"][:, 1:].flatten(), reduction="none").view(len(batch["ids"]), -1)
        counts = batch["counts"][:, 1:]
        return {"loss": (losses * counts).sum() / counts.sum(), "tokens": int(counts.sum())}


def batch(step: int, rows: int) -> dict[str, torch.Tensor]:
    """Rows that count upwards; row i counts only its first tokens, a number of its own."""
    made = torch.Generator().manual_seed(step)
    ids = (torch.randint(0, VOCAB, (rows, 1), generator=made) + torch.arange(LENGTH + 1)) % VOCAB
    lengths = torch.randint(3, LENGTH, (rows, 1), generator=made)
    return {"ids": ids, "counts": torch.arange(LENGTH + 1) < lengths}


@torch.no_grad()
def heldout(module: Counting) -> float:
    """Loss on rows that are never trained on."""
    return module.training_step(batch(1000, 8), 0)["loss"].item()


def train(out: Path, resources: dict[str, Any], config: dict[str, Any], *, ramp: bool = True, dropout: float = 0.0, context: Context | None = None, look: bool = False, **options: Any) -> tuple[Course, Counting]:
    """Train; the batch grows from 3 to 7 rows, so that nothing divides evenly."""
    plan = {"steps": STEPS, "batch_size": 7, "learning_rate": 1e-2, "warmup_steps": 2, "checkpoint_every_steps": 4, **config}
    module = Counting(OptimConfig(**plan), dropout)
    rows = (lambda step: 3 if step < plan["steps"] // 2 else 7) if ramp else (lambda step: 8)
    if look:
        options["looks"] = Looks(validate=lambda step: {"heldout_loss": heldout(module)}, validate_every=2)
    context = context or Context(seed=1, resources=Resources(accelerator="cpu", **resources))
    course = fit(module, lambda step: batch(step, rows(step)), plan["steps"], every=plan["checkpoint_every_steps"], out=out, context=context, identity={"plan": plan}, **options)
    return course, module


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, told, wanted = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    course, trained = train(folder, told, wanted, look=True)
    with trained.averaged_weights():
        torch.save(trained.model.state_dict(), folder / "weights.pt")
    (folder / "course.json").write_text(json.dumps({"losses": course.losses, "best": course.best, "execution": course.execution()}))
