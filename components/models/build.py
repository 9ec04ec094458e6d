"""A language model: built from a recipe, saved to a folder, loaded from one.

The folder is the one plain transformers reads (`AutoModelForCausalLM.from_pretrained(folder)`, or `AutoModelForMaskedLM` for
an encoder): config.json, generation_config.json, model.safetensors, and the tokenizer with its chat template. Weights are
safetensors only; no pickle is ever read. The same weights give the same bytes, so a folder can be compared by its hash.
Which architecture takes which field is in architectures.py; weights that exist already are initial.py's.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from components.models.architectures import AUTO, MASK_TOKEN, Objective, has_masked_head, prove, rejected, resolve, vocabulary
from components.models.memory import refuse_impossible_size
from components.models.quantized import PACKED, readable
from components.schema.config import BadInput
from components.schema.events import say
from components.schema.training import ModelConfig

hf_logging.disable_progress_bar()  # a stage's log is read by people and by the dashboard; a bar per saved file is noise

GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that read tokenizer.json and nothing else
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "added_tokens.json")


def build(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int, objective: Objective = "next_token") -> PreTrainedModel:
    """A freshly initialised model; the seed decides its weights, and what the recipe left open is told.

    objective next_token: a causal model. masked: an encoder, with a row for the mask token (`architectures.mask_id`).
    Errors: BadInput for a config, a size or an objective that cannot work.
    """
    resolved = resolve(config, tokenizer, objective)
    refuse_impossible_size(config, vocabulary(tokenizer, objective), objective)
    for line in resolved.told:
        say({"event": "note", "text": line})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AUTO[objective].from_config(resolved.config)
        except Exception as error:  # transformers raises whatever its modelling code trips over
            raise rejected(config, error) from error
    prove(model, objective)
    if objective == "next_token":
        model.generation_config = GenerationConfig(eos_token_id=stop_ids(tokenizer), pad_token_id=tokenizer.pad_token_id)
    return model.train()


def count_parameters(model: torch.nn.Module) -> int:
    """Parameters of a model, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens after which an answer is over: end of turn, and end of document (which is the padding token too)."""
    return [tokenizer.eos_token_id, tokenizer.pad_token_id]


# ---------------------------------------------------------------- folders


def save(model: PreTrainedModel, tokenizer: Path, out: Path) -> None:
    """Write a model folder: weights as safetensors, configs, and the tokenizer's files as they are (an encoder's with a mask token)."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    if has_masked_head(model) and (words := load_tokenizer(tokenizer)).mask_token_id is None:
        words.add_special_tokens({"mask_token": MASK_TOKEN})
        words.save_pretrained(out)
        return
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, out / name)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A folder's tokenizer as its own files have it: where they say that tokenizer.json is all there is, AutoTokenizer is not asked, which would go by the
    model type in config.json and read a Qwen2 of ours with Qwen2's own word expression. Errors: whatever transformers raises."""
    settings = folder / "tokenizer_config.json"
    plain = settings.is_file() and json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") in GENERIC
    return (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(folder, local_files_only=True)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or tokenizer folder. Errors: BadInput."""
    _require(folder, "tokenizer.json")
    try:
        tokenizer = read_tokenizer(folder)
    except Exception as error:  # the Rust parser raises bare Exception
        raise BadInput(f"tokenizer: {folder / 'tokenizer.json'} cannot be read ({_first_line(error)}). Make the folder again") from error
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise BadInput(f"tokenizer: {folder} names no pad_token or no eos_token, so answers could neither be padded nor end. Make it with the data stage")
    return tokenizer


def load(folder: Path, objective: Objective = "next_token") -> PreTrainedModel:
    """The model in a folder, in train mode. Errors: BadInput for missing, foreign or damaged files."""
    return load_as(AUTO[objective], folder)


def load_as(auto: Any, folder: Path, may_be_new: tuple[str, ...] = (), **options: Any) -> PreTrainedModel:
    """The model in a folder as `auto` reads it; weights named in `may_be_new` may be absent and are then initialised.

    Errors: BadInput naming the file and the way out.
    """
    _require(folder, "config.json")
    if not (folder / PACKED).is_file():
        _require(folder, "model.safetensors")
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # what is missing is judged below
    try:
        with readable(folder) as place:
            model, report = auto.from_pretrained(place, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **options)
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
