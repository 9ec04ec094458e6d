"""A causal language model: built from a recipe, saved to a folder, loaded from one.

The folder is the one plain transformers reads (`AutoModelForCausalLM.from_pretrained(folder)`): config.json,
generation_config.json, model.safetensors, and the tokenizer with its chat template. Weights are safetensors only; no
pickle is ever read. The same weights give the same bytes, so a folder can be compared by its hash.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from components.schema.config import BadInput
from components.schema.training import ModelConfig

hf_logging.disable_progress_bar()  # a stage's log is read by people and by the dashboard; a bar per saved file is noise

# What AdamW in float32 holds for each parameter: weight, gradient, two moments.
TRAINING_BYTES_PER_PARAMETER = 16
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "added_tokens.json")

# Our field, and what the architectures call it; the first name that the architecture knows is used.
FIELD_NAMES = {
    "hidden_size": ("hidden_size",),
    "layers": ("num_hidden_layers",),
    "heads": ("num_attention_heads",),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim"),
    "context_tokens": ("max_position_embeddings",),
    "tie_embeddings": ("tie_word_embeddings",),
}


def build(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A freshly initialised model; the seed decides its weights. Errors: BadInput for a config or size that cannot work."""
    resolved = resolve(config, tokenizer)
    refuse_impossible_size(config, len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(resolved)
        except Exception as error:  # transformers raises whatever its modelling code trips over
            raise _rejected(config, error) from error
    model.generation_config = GenerationConfig(eos_token_id=stop_ids(tokenizer), pad_token_id=tokenizer.pad_token_id)
    return model.train()


def resolve(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The architecture's own transformers config. Errors: BadInput where it does not exist, or would ignore or refuse a field."""
    try:
        default = AutoConfig.for_model(config.architecture)
    except ValueError:
        raise BadInput(
            f"model: architecture={config.architecture!r} is unknown to transformers, so nothing can be built. Use one of its model types: llama, qwen2, mistral, gpt2, ..."
        ) from None
    if unknown := [key for key in config.extra if not hasattr(default, key)]:
        raise BadInput(f"model: extra names {unknown}, which architecture {config.architecture!r} does not have: they would be ignored. Remove them or correct their names")
    fields = _fields(config, default) | {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        **config.extra,
    }
    if getattr(default, "is_decoder", True) is False and "is_decoder" not in config.extra:
        raise BadInput(
            f"model: architecture={config.architecture!r} reads in both directions: it would see the token it is to predict and learn nothing. "
            "Use a decoder such as llama, qwen2, mistral, gpt2"
        )
    try:
        return AutoConfig.for_model(config.architecture, **fields)
    except Exception as error:  # strict validation raises several types
        raise _rejected(config, error) from error


def _fields(config: ModelConfig, default: PreTrainedConfig) -> dict[str, Any]:
    """Our fields under the architecture's names; what only some architectures have follows from ours."""
    fields: dict[str, Any] = {}
    for ours, theirs in FIELD_NAMES.items():
        name = next((name for name in theirs if hasattr(default, name)), None)
        if name is None:
            raise BadInput(f"model: architecture {config.architecture!r} has no field for {ours}, so it cannot be built from a recipe. Use a decoder such as llama, qwen2, mistral, gpt2")
        fields[name] = getattr(config, ours)
    if hasattr(default, "num_key_value_heads"):
        fields["num_key_value_heads"] = config.heads
    if hasattr(default, "head_dim"):
        fields["head_dim"] = config.hidden_size // config.heads
    return fields


def _rejected(config: ModelConfig, error: Exception) -> BadInput:
    reason = " ".join(str(error).split())[:300]
    return BadInput(f"model: transformers cannot build architecture={config.architecture!r} from this section ({reason}). Correct the field it names, or the ones under `extra`")


def refuse_impossible_size(config: ModelConfig, vocab_size: int) -> None:
    """Refuse, before a byte is allocated, a model whose training cannot fit into this machine's memory. Errors: BadInput."""
    parameters = least_parameters(config, vocab_size)
    needed, free = parameters * TRAINING_BYTES_PER_PARAMETER, available_bytes()
    if needed > free:
        raise BadInput(
            f"model: about {parameters / 1e6:,.0f}M parameters need {needed / 2**30:,.1f} GiB to train ({TRAINING_BYTES_PER_PARAMETER} bytes each), and {free / 2**30:,.1f} GiB "
            f"are free: the process would be killed. Lower hidden_size={config.hidden_size}, layers={config.layers} or intermediate_size={config.intermediate_size}"
        )


def least_parameters(config: ModelConfig, vocab_size: int) -> int:
    """The parameters any architecture of these dimensions has at least: attention, two feed-forward matrices, embeddings."""
    block = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    return config.layers * block + vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)


def available_bytes() -> int:
    """Memory that can be had without swapping: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        return next(int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def count_parameters(model: torch.nn.Module) -> int:
    """Parameters of a model, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens after which an answer is over: end of turn, and end of document (which is the padding token too)."""
    return [tokenizer.eos_token_id, tokenizer.pad_token_id]


# ---------------------------------------------------------------- folders


def save(model: PreTrainedModel, tokenizer: Path, out: Path) -> None:
    """Write a model folder: weights as safetensors, configs, and the tokenizer's files as they are."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, out / name)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or tokenizer folder. Errors: BadInput."""
    _require(folder, "tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the Rust parser raises bare Exception
        raise BadInput(f"tokenizer: {folder / 'tokenizer.json'} cannot be read ({_first_line(error)}). Make the folder again") from error
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise BadInput(f"tokenizer: {folder} names no pad_token or no eos_token, so answers could neither be padded nor end. Make it with the data stage")
    return tokenizer


def load(folder: Path) -> PreTrainedModel:
    """The causal model in a folder, in train mode. Errors: BadInput for missing, foreign or damaged files."""
    return load_as(AutoModelForCausalLM, folder)


def load_as(auto: Any, folder: Path, may_be_new: tuple[str, ...] = (), **options: Any) -> PreTrainedModel:
    """The model in a folder as `auto` reads it; weights named in `may_be_new` may be absent and are then initialised.

    Errors: BadInput naming the file and the way out.
    """
    _require(folder, "config.json")
    _require(folder, "model.safetensors")
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # what is missing is judged below
    try:
        model, report = auto.from_pretrained(folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **options)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise BadInput(
            f"model: {folder / _damaged_file(folder)} cannot be read ({_first_line(error)}). Delete {folder} and run the stage that made it again"
        ) from error
    finally:
        hf_logging.set_verbosity(verbosity)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(may_be_new or ("\0",)))
    if missing:
        raise BadInput(f"model: {folder / 'model.safetensors'} lacks {len(missing)} weights, such as {missing[0]}: they would be random. Run the stage that made it again")
    return model.train()  # from_pretrained hands back eval mode, in which dropout would silently stay off


def _require(folder: Path, name: str) -> None:
    if (folder / name).is_file():
        return
    pickled = sorted(p.name for p in folder.glob("*.bin")) if name.endswith("safetensors") else []
    hint = f"It holds {pickled[0]}, a pickle, which is never loaded: convert it to safetensors" if pickled else "Give the folder of a finished stage"
    raise BadInput(f"model: {folder / name} does not exist, so nothing can be loaded. {hint}")


def _damaged_file(folder: Path) -> str:
    """Which of a folder's files is the one that cannot be read."""
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return "config.json"
    return "model.safetensors"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
