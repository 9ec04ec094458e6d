"""A transformers folder as lm-eval's HFLM, with three differences that change speed, or what a small model needs:

- a row stops by itself at the first stop string, where HFLM goes on until every row of the batch has stopped by the same
  string (the text is cut at the first stop either way);
- the pad token, which here also separates documents, ends an answer as the end-of-turn token does: it is how a base
  model says that it has finished;
- every model call reports its rows, for progress.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from components.schema.config import BadInput


def load_model(folder: Path, batch_size: int, device: str | None = None, on_rows: Callable[[int], None] | None = None) -> LocalModel:
    """Load a checkpoint for measuring. Errors: BadInput where the folder is not a model with its tokenizer."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype="auto")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"evaluation: {folder} is not a causal language model with its tokenizer ({str(error).splitlines()[0]}), so it cannot be "
            "measured. Give a folder written by save_pretrained of both"
        ) from None
    return LocalModel(model.to(device), tokenizer, batch_size, on_rows)


class LocalModel(HFLM):
    """HFLM over a loaded model."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, batch_size: int, on_rows: Callable[[int], None] | None = None):
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.on_rows = on_rows or (lambda rows: None)

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits = super()._model_call(inps, *args, **kwargs)
        self.on_rows(len(inps))
        return logits

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: Any) -> torch.Tensor:
        if not kwargs.get("do_sample"):
            kwargs.pop("temperature", None)
            kwargs["do_sample"] = False
        with torch.inference_mode():
            tokens = self.model.generate(
                input_ids=context,
                max_length=max_length,
                stopping_criteria=StoppingCriteriaList([StopStrings(stop, self.tokenizer, context.shape[1])]),
                eos_token_id=[self.tokenizer.eos_token_id, self.tokenizer.pad_token_id],
                pad_token_id=self.tokenizer.pad_token_id,
                **kwargs,
            )
        self.on_rows(len(context))
        return tokens


class StopStrings(StoppingCriteria):
    """Per row: True once the answer holds one of the strings."""

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase, prompt_tokens: int):
        self.strings = tuple(strings)
        self.tokenizer = tokenizer
        self.prompt_tokens = prompt_tokens
        self.tail = max((len(s.encode()) for s in self.strings), default=0)  # a token is a byte at least, so no string is longer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        answer = input_ids[:, self.prompt_tokens :][:, -self.tail :]  # (B, <= tail)
        texts = self.tokenizer.batch_decode(answer)
        return torch.tensor([any(s in text for s in self.strings) for text in texts], device=input_ids.device)  # (B,)
