"""Training begins from weights that exist: a folder as plain transformers writes it, its vocabulary made ours.

A token is carried over by its spelling, never by its id: row i of the new embedding is the row that the old tokenizer's token
of the same spelling had. A token that the old model does not know starts at the mean of the rows it does know, plus a little
noise (Hewitt 2021, "Initializing new word embeddings for pretrained language models"): with a small random row its logit can be far above
all others and the old distribution is lost; with the mean, n new tokens take at most about n/(V+n) of the probability from the V old ones. The noise keeps new
tokens apart from each other, which would otherwise start, and in a softmax that never sees them stay, the same.

    model = begin(config, tokenizer, Path("weights"), "next_token")
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from components.models.architectures import (
    AUTO,
    DROPOUTS,
    FIELD_NAMES,
    MASK_TOKEN,
    POSITIONS_AFTER_PADDING,
    Objective,
    first_of,
    has,
    mask_id,
    prove,
    refuse_wrong_objective,
    typed,
    vocabulary,
)
from components.models.build import load_as, read_tokenizer, stop_ids
from components.models.memory import quiet
from components.schema.config import BadInput
from components.schema.events import say
from components.schema.training import ModelConfig

NOISE = 0.01  # of the standard deviation of the old rows, in each direction


@dataclass(frozen=True)
class Carried:
    """Where each new row comes from."""

    sources: Tensor
    """(V,) the old row of each new token, -1 where there is none."""
    known: Tensor
    """(K,) the old rows that a token has; others are padding of the matrix."""

    @property
    def kept(self) -> int:
        """Rows carried over."""
        return int((self.sources >= 0).sum())


def begin(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, objective: Objective = "next_token", seed: int = 0) -> PreTrainedModel:
    """The model in `folder`, reading our tokens; what was carried over and what is new is told.

    Its own dimensions and its own tying hold; `dropout`, `extra`, `context_tokens`, padding, end and stop tokens are ours.
    Errors: BadInput for a folder that cannot be read, a wrong objective, or more context than its positions were learned for.
    """
    old_tokenizer = _old_tokenizer(folder)
    settings = _settings(config, tokenizer, folder, objective)
    model = load_as(AUTO[objective], folder, **settings)
    carried = carry(old_tokenizer, tokenizer, objective, rows=model.get_input_embeddings().weight.shape[0])
    revocabulate(model, carried, seed)
    _set_tokens(model, tokenizer, objective)
    prove(model, objective)
    total = len(carried.sources)
    say({"event": "note", "text": f"weights from {folder}: {carried.kept} of {total} token rows carried over by spelling, {total - carried.kept} new ones start at the mean of the old"})
    return model.train()


def _old_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return read_tokenizer(folder)
    except Exception as error:  # transformers and the Rust parser raise what they like
        line = " ".join(str(error).split())[:200]
        raise BadInput(
            f"model: init_from {folder} has no tokenizer that can be read ({line}), so nobody knows which of its rows is which token. Put the tokenizer's files beside its weights"
        ) from error


# ---------------------------------------------------------------- rows


def carry(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, objective: Objective, rows: int) -> Carried:
    """Match two vocabularies by spelling; `rows` = rows of the old matrix, beyond which a token has none."""
    old_ids = {token: i for token, i in old.get_vocab().items() if i < rows}
    sources = torch.full((vocabulary(new, objective),), -1)
    for token, i in new.get_vocab().items():
        sources[i] = old_ids.get(token, -1)
    if objective == "masked" and new.mask_token_id is None:
        sources[mask_id(new)] = old_ids.get(old.mask_token or MASK_TOKEN, -1)
    return Carried(sources, torch.tensor(sorted(set(old_ids.values()))))


@torch.no_grad()
def revocabulate(model: PreTrainedModel, carried: Carried, seed: int = 0) -> None:
    """Give the model the new vocabulary in place: embedding, output layer and its bias; tied ones stay tied."""
    tables = _vocabulary_tables(model)
    before = [table.detach().clone() for table in tables]
    model.resize_token_embeddings(len(carried.sources), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    for new, old in zip(_vocabulary_tables(model), before, strict=True):
        new.copy_(rows_from(old, carried, generator))
    model.tie_weights()


def _vocabulary_tables(model: PreTrainedModel) -> list[Tensor]:
    """What has a row for each token: the embedding, the output matrix where it is another, the output bias."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [embedding.weight]
    if isinstance(output, nn.Module):
        tables += [output.weight] if output.weight is not embedding.weight else []
        tables += [output.bias] if getattr(output, "bias", None) is not None else []
    return tables


def rows_from(old: Tensor, carried: Carried, generator: torch.Generator) -> Tensor:
    """Old rows (V_old, ...) in the new order (V, ...); a token without one gets mean + NOISE x standard deviation x normal."""
    known = old[carried.known]
    mean, spread = known.mean(0), known.std(0, correction=0)
    noise = torch.randn((len(carried.sources), *old.shape[1:]), generator=generator).to(old)
    fresh = mean + NOISE * spread * noise
    is_kept = (carried.sources >= 0).view(-1, *[1] * (old.ndim - 1)).to(old.device)
    return torch.where(is_kept, old[carried.sources.clamp(min=0)], fresh)


# ---------------------------------------------------------------- configuration


def _settings(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, objective: Objective) -> dict[str, Any]:
    """What is ours in the old configuration. Errors: BadInput."""
    try:
        old = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise BadInput(f"model: init_from {folder} holds no config.json that transformers can read ({' '.join(str(error).split())[:200]}). Give a folder of plain transformers weights") from error
    refuse_wrong_objective(old, objective, is_decoder=getattr(old, "is_decoder", False))
    if unknown := [key for key in config.extra if not has(old, key)]:
        raise BadInput(f"model: extra names {unknown}, which the weights in {folder} ({old.model_type}) do not have: they would be ignored. Remove them")
    dropouts = {name: config.dropout for name in DROPOUTS if has(old, name)}
    if config.dropout and not dropouts:
        raise BadInput(f"model: dropout={config.dropout} is given and architecture {old.model_type!r} has no dropout: it would be ignored. Set it to 0")
    return {**dropouts, **_context(config, old, folder, learns_positions(old, objective)), **typed(config.extra, old)}


def _context(config: ModelConfig, old: PreTrainedConfig, folder: Path, is_learned: bool) -> dict[str, int]:
    """Our context length. A table of learned positions keeps its rows: its first context_tokens are used."""
    name = first_of(old, FIELD_NAMES["context_tokens"])
    if name is None:
        return {"max_position_embeddings": config.context_tokens}
    rows = getattr(old, name)
    positions = rows - (2 if old.model_type == "mpnet" else (old.pad_token_id or 0) + 1) if old.model_type in POSITIONS_AFTER_PADDING else rows
    if config.context_tokens <= positions:
        return {} if is_learned else {name: config.context_tokens}
    if is_learned:
        raise BadInput(f"model: context_tokens={config.context_tokens} and the weights in {folder} ({old.model_type}) have learned {positions} positions: the others do not exist. Lower context_tokens")
    say({"event": "note", "text": f"model.context_tokens = {config.context_tokens} and the weights were trained with up to {positions}: farther positions are new to them"})
    return {name: config.context_tokens}


def learns_positions(config: PreTrainedConfig, objective: Objective) -> bool:
    """Whether positions are a table of weights (GPT-2, BERT), which nothing can lengthen: looked up in the model's shapes."""
    with torch.device("meta"), quiet():
        names = [name for name, module in AUTO[objective].from_config(config).named_modules() if isinstance(module, nn.Embedding)]
    return any(name.endswith(("wpe", "position_embeddings", "embed_positions")) for name in names)


def _set_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, objective: Objective) -> None:
    """Padding, end and stop tokens are ours."""
    model.config.pad_token_id, model.config.eos_token_id, model.config.bos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id, None
    if objective == "next_token":
        model.generation_config = GenerationConfig(eos_token_id=stop_ids(tokenizer), pad_token_id=tokenizer.pad_token_id)
