"""Engines that answer in place of a model's own loop (generate.py): vLLM on a GPU, where it is installed.

    engine = engine_for("vllm", folder, context_tokens=1024)    # None for "transformers": the model answers by itself
    engine.take(policy)                                         # the weights of this step
    answers = engine.generate(prompts, stop_ids=..., ...)       # as generate.generate

An engine's numbers differ from the training forward's in the last bits, and from one batch to another: what it samples is not the same bits twice, so a run
with an engine does not resume exactly. Log-probabilities are made by the training forward in any case (rollouts.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from transformers import PreTrainedModel

from components.schema.config import BadInput

EngineName = Literal["transformers", "vllm"]


class Engine(Protocol):
    """Something that holds a copy of a model and answers prompts."""

    def take(self, model: PreTrainedModel) -> None:
        """Answer with these weights from now on."""

    def generate(
        self, prompts: Sequence[Sequence[int]], *, stop_ids: Sequence[int], pad_id: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        """The tokens that follow each prompt, up to and with the first stop token."""


def engine_for(name: EngineName, folder: Path, *, context_tokens: int, memory_share: float = 0.3) -> Engine | None:
    """The engine of that name for the model in `folder`; None where the model answers by itself. Errors: BadInput where it is not installed or finds no GPU."""
    return Vllm(folder, context_tokens, memory_share) if name == "vllm" else None


class Vllm:
    """vLLM in this very process, beside the model that trains, with `memory_share` of the GPU's memory for itself (Kwon et al. 2023, arXiv:2309.06180)."""

    def __init__(self, folder: Path, context_tokens: int, memory_share: float) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine lives in this process, so weights are handed over as they are
        try:
            import vllm
        except ImportError as error:
            raise BadInput(
                f"engine: vllm is asked for and cannot be imported ({error}), so nothing would be sampled. It needs an image of its own with a GPU "
                "(it pins another torch); use engine=transformers, which needs nothing"
            ) from None
        self.sampling = vllm.SamplingParams
        try:
            self.llm: Any = vllm.LLM(
                model=str(folder), max_model_len=context_tokens, gpu_memory_utilization=memory_share,
                enable_prefix_caching=True, skip_tokenizer_init=True, disable_log_stats=True,
            )  # fmt: skip
        except (RuntimeError, ValueError) as error:
            raise BadInput(
                f"engine: vllm does not start with {folder} ({(str(error) or repr(error)).splitlines()[0]}), so nothing would be sampled. "
                "Give it a free GPU and an architecture that it knows, or use engine=transformers"
            ) from error

    def take(self, model: PreTrainedModel) -> None:
        weights = list(model.state_dict().items())
        self.llm.apply_model(lambda copy: copy.load_weights(iter(weights)) and None)
        self.llm.reset_prefix_cache()  # what it remembers of prompts was read with the old weights

    def generate(
        self, prompts: Sequence[Sequence[int]], *, stop_ids: Sequence[int], pad_id: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        plans = [
            self.sampling(
                temperature=temperature, top_p=1.0, top_k=-1, max_tokens=max_new_tokens, stop_token_ids=list(stop_ids), ignore_eos=True, detokenize=False,
                seed=(seed * 1_000_003 + row) % 2**63,
            )
            for row in range(len(prompts))
        ]  # fmt: skip
        outputs = self.llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], plans, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]
