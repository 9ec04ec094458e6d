"""Heads on a language model: logits where they are wanted, one score per text, one value per token, a class or a span for a task.

The scalar model is transformers' own `AutoModelForSequenceClassification(num_labels=1)`. Read at the last token it is
a reward model; read at every token it is PPO's value function. So a reward model's folder starts either.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoModelForSequenceClassification, PreTrainedModel

from components.models.build import load_as
from components.schema.config import BadInput

TASKS = {"classification": AutoModelForSequenceClassification, "question_answering": AutoModelForQuestionAnswering}


def logits_at(model: PreTrainedModel, counts: Tensor, **inputs: Tensor) -> Tensor:
    """Logits of the positions where `counts` (B, T) is True, in row-major order: (N, V).

    The rows to keep are picked in front of the output layer, whose matrix product is the largest of a small model, and
    whatever the architecture does behind it (scaling, soft caps) still happens. `use_cache=False` is not a detail:
    with a cache transformers ignores that position_ids start anew, and packed texts read each other.
    """

    def pick(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][counts], *args[1:])  # (B, T, H) -> (N, H)

    hook = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        return model(**inputs, use_cache=False).logits
    finally:
        hook.remove()


def scalar_model_from(folder: Path, seed: int) -> PreTrainedModel:
    """A scalar model whose trunk is the language model in `folder`; the head is new unless the folder has one. Errors: BadInput."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_as(AutoModelForSequenceClassification, folder, may_be_new=("score.",), num_labels=1)


def scores(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Score of each text, read at its last token that is not padding: (B,). `ids` (B, T) is padded on the right.

    No attention mask is needed: attention is causal, so no token of a text sees the padding behind it.
    """
    return model(input_ids=ids, use_cache=False).logits.squeeze(-1)


def values(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The scalar head read at every token: (B, T). `ids` is padded on the right."""
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, H)
    return model.score(hidden).squeeze(-1)


def task_model_from(folder: Path, kind: str, labels: tuple[str, ...], seed: int, pad_id: int) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """A model for a task whose trunk is the language model in `folder`, and the names of its new weights, which follow from the seed.

    The trunk is read by itself: transformers gives Llama and Qwen2 another name for it under a question-answering head, and reading the language
    model's folder as such leaves the whole trunk random. Errors: BadInput, also for an architecture that transformers has no such head for.
    """
    trunk = load_as(AutoModel, folder, may_be_new=("pooler.",))
    config = trunk.config
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    config.pad_token_id = pad_id
    if hasattr(config, "use_cache"):
        config.use_cache = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = TASKS[kind].from_config(config, dtype=torch.float32)
        except ValueError:
            raise BadInput(f"sft.task: transformers has no head for {kind} on architecture {config.model_type!r}, so nothing could be trained. Use llama, qwen2, mistral or an encoder") from None
        state = {name: value for name, value in trunk.state_dict().items() if not name.startswith("pooler.")}
    lacking, foreign = model.base_model.load_state_dict(state, strict=False)
    inside = [f"{model.base_model_prefix}.{name}" for name in lacking]
    if foreign or [name for name in lacking if not name.startswith("pooler.")]:
        raise BadInput(f"sft.task: the trunk of architecture {config.model_type!r} is another under a head for {kind} ({[*foreign, *lacking][0]}): it would be random. Use another architecture")
    trunk_names = {f"{model.base_model_prefix}.{name}" for name in model.base_model.state_dict()}
    return model.train(), (*inside, *(name for name, _ in model.named_parameters() if name not in trunk_names))
