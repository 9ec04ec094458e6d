"""One recipe section, many architectures: our few fields under the names that each of transformers' architectures has for them.

Decoders, mixtures of experts, state-space and linear-attention models, and encoders that restore masked tokens. A field that
is not given follows the architecture's natural rule (schema/presets.py), and every such decision is told. Nothing is ever
ignored in silence: a field that the architecture does not have is refused.

    resolved = resolve(config, tokenizer, "next_token")    # .config goes to transformers, .told to the person
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from components.schema.config import BadInput
from components.schema.presets import natural_heads, natural_intermediate
from components.schema.training import ModelConfig

Objective = Literal["next_token", "masked"]

DECODERS, ENCODERS = "llama, qwen2, mistral, gpt2", "modernbert, bert, roberta"
AUTO = {"next_token": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}
ONE_WAY = {"gpt_neox", "gpt_neox_japanese"}  # causal, though their config says is_decoder=False
AUXILIARY_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
MASK_TOKEN = "<|mask|>"
PROOF_TOKENS = 8
CHUNK_TOKENS = 64  # of a Mamba-2 scan

# Our field, and what the architectures call it; the first name that the architecture knows is used.
FIELD_NAMES = {
    "hidden_size": ("hidden_size",),
    "layers": ("num_hidden_layers",),
    "heads": ("num_attention_heads", "num_heads"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim"),
    "context_tokens": ("max_position_embeddings", "max_seq_len"),
    "tie_embeddings": ("tie_word_embeddings",),
}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
# Of attention, of what a block adds to the residual stream, of the embeddings. Never of classifiers, nor of whole layers.
DROPOUTS = (
    *("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop"),
    *("hidden_dropout", "hidden_dropout_prob", "resid_pdrop", "resid_dropout", "residual_dropout", "dropout", "dropout_p", "activation_dropout", "mlp_dropout"),
    *("embd_pdrop", "emb_pdrop", "embed_dropout", "embedding_dropout"),
)
# Encoders that count positions from behind the padding id, so that their table needs that many rows more.
POSITIONS_AFTER_PADDING = {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "xmod", "ibert", "luke", "longformer", "mpnet", "esm"}


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What transformers is given, and what was decided for the person."""

    config: PreTrainedConfig
    told: tuple[str, ...]


def resolve(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, objective: Objective = "next_token") -> Resolved:
    """The architecture's own transformers config. Errors: BadInput where it does not exist, or would ignore or refuse a field."""
    return configure(config, objective, vocabulary(tokenizer, objective), tokenizer.pad_token_id, tokenizer.eos_token_id)


def configure(config: ModelConfig, objective: Objective, vocab_size: int, pad_id: int = 0, eos_id: int = 0) -> Resolved:
    """`resolve` for a vocabulary of which the size is known. Errors: BadInput."""
    default = default_config(config.architecture)
    if unknown := [key for key in config.extra if not has(default, key)]:
        raise BadInput(f"model: extra names {unknown}, which architecture {config.architecture!r} does not have: they would be ignored. Remove them or correct their names")
    refuse_wrong_objective(default, objective, is_decoder=config.extra.get("is_decoder", False))
    told: list[str] = []
    fields = {
        **_dimensions(config, default, pad_id, told),
        **_dropout(config, default, told),
        "vocab_size": vocab_size,
        "pad_token_id": pad_id,
        "eos_token_id": eos_id,
        "bos_token_id": None,
        **typed(config.extra, default),
    }
    resolved = _make(config, fields)
    _check_experts(resolved)
    return Resolved(resolved, tuple(told))


def typed(extra: Mapping[str, Any], default: PreTrainedConfig) -> dict[str, Any]:
    """Whole numbers as floats where the architecture's own value is one: a form in a browser sends 1.0 as 1, and transformers refuses an int there."""
    return {
        name: float(value) if isinstance(value, int) and not isinstance(value, bool) and isinstance(getattr(default, name, None), float) else value
        for name, value in extra.items()
    }


def _make(config: ModelConfig, fields: dict[str, Any]) -> PreTrainedConfig:
    """transformers' config. A few architectures must have a bos token: a document begins behind <|endoftext|>, which is the padding token."""
    try:
        return AutoConfig.for_model(config.architecture, **fields)
    except Exception as error:  # strict validation raises several types
        if "bos_token_id" in str(error) and fields["bos_token_id"] is None:
            return _make(config, {**fields, "bos_token_id": fields["pad_token_id"]})
        raise rejected(config, error) from error


def default_config(architecture: str) -> PreTrainedConfig:
    """Errors: BadInput for a model type that transformers does not have."""
    try:
        return AutoConfig.for_model(architecture)
    except Exception as error:
        if isinstance(error, (ValueError, KeyError)) and "model_type" not in str(error) and "identifier" not in str(error):
            raise BadInput(f"model: transformers cannot make a default config of architecture={architecture!r} ({_line(error)}), so nothing can be built. Use another, such as {DECODERS}") from None
        raise BadInput(
            f"model: architecture={architecture!r} is unknown to transformers, so nothing can be built. Use one of its model types: {DECODERS}, ..., with objective masked {ENCODERS}, ..."
        ) from None


def has(config: PreTrainedConfig, name: str) -> bool:
    """Whether the config has the field; some configs raise where a field differs from layer to layer."""
    try:
        return hasattr(config, name)
    except Exception:
        return True


def first_of(config: PreTrainedConfig, names: tuple[str, ...]) -> str | None:
    """The first of these names that the config has."""
    return next((name for name in names if has(config, name)), None)


# ---------------------------------------------------------------- objective and vocabulary


def refuse_wrong_objective(default: PreTrainedConfig, objective: Objective, is_decoder: bool = False) -> None:
    """A causal model cannot restore masked tokens, nor an encoder predict the next one. Errors: BadInput."""
    name = default.model_type
    restores = name in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(default, "is_encoder_decoder", False)
    if objective == "masked" and not restores:
        raise BadInput(
            f"model: architecture={name!r} does not restore masked tokens with what stands on both sides of them, which objective=masked asks for. "
            f"Use an encoder such as {ENCODERS}, or objective: next_token"
        )
    if objective == "masked":
        return
    sees_ahead = getattr(default, "is_decoder", True) is False and not is_decoder and name not in ONE_WAY
    if sees_ahead or (name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and restores):
        raise _sees_ahead(name, restores)
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BadInput(f"model: architecture={name!r} is no language model that predicts the next token. Use a decoder such as {DECODERS}")


def _sees_ahead(name: str, restores: bool) -> BadInput:
    return BadInput(
        f"model: architecture={name!r} reads in both directions: it would see the token it is to predict and learn nothing. "
        f"Use a decoder such as {DECODERS}" + (", or pretrain.objective: masked" if restores else "")
    )


@torch.no_grad()
def prove(model: PreTrainedModel, objective: Objective) -> None:
    """Read a few tokens, change the last, and look whether the ones before it feel that: a causal model's must not, an encoder's must.

    transformers' lists do not tell: XLNet is among the causal models and sees ahead; MRA's attention is zeros without its CUDA kernel.
    Errors: BadInput, also where the model can be built and cannot run.
    """
    name, was_training = model.config.model_type, model.training
    rows = model.get_input_embeddings().weight.shape[0]
    ids = (rows // 2 + torch.arange(PROOF_TOKENS))[None] % (rows - 1)  # from the middle: special tokens, which some models treat apart, stand at either end
    how = {"use_cache": False} if objective == "next_token" else {}
    changed = torch.cat([ids[:, :-1], ids[:, -1:] + 1], dim=1)
    try:
        with torch.random.fork_rng(devices=[]):
            one, other = (model.eval()(input_ids=tokens.to(model.device), **how).logits for tokens in (ids, changed))  # (1, PROOF_TOKENS, V)
    except Exception as error:  # whatever modelling code trips over
        raise BadInput(f"model: architecture={name!r} is built from this section and cannot read ({_line(error)}). Correct the fields under `extra`, or use another, such as {DECODERS}") from error
    finally:
        model.train(was_training)
    moved = (one - other).abs().amax(dim=(0, 2))  # (PROOF_TOKENS,)
    is_felt = moved[:-1].max() > 1e-3 * moved[-1] if objective == "next_token" else moved[:-1].max() > 0
    if is_felt and objective == "next_token":
        raise _sees_ahead(name, name in MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    if not is_felt and objective == "masked":
        raise BadInput(f"model: the tokens that architecture={name!r} reads do not see each other here, so it could restore none. Use another encoder, such as {ENCODERS}")


def mask_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands where a masked one stood: the tokenizer's own, else <|mask|> in one row behind its vocabulary.

    None of our special tokens is used for it: each has a meaning in a later stage, and a text of the corpus may be cut at
    <|endoftext|>. The ids of all other tokens stay, so token shards stay good; `save` writes the tokenizer with the token in it.
    """
    return len(tokenizer) if tokenizer.mask_token_id is None else tokenizer.mask_token_id


def has_masked_head(model: PreTrainedModel) -> bool:
    """Whether it is a model that restores masked tokens."""
    return type(model).__name__ == MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(model.config.model_type)


def vocabulary(tokenizer: PreTrainedTokenizerBase, objective: Objective) -> int:
    """Rows of the embedding: every token, and the mask where it is needed."""
    return max(len(tokenizer), mask_id(tokenizer) + 1) if objective == "masked" else len(tokenizer)


# ---------------------------------------------------------------- dimensions


def _dimensions(config: ModelConfig, default: PreTrainedConfig, pad_id: int, told: list[str]) -> dict[str, Any]:
    """Our fields under the architecture's names; what only some architectures have follows from ours."""
    for ours in ("hidden_size", "layers"):
        if getattr(config, ours) is None:
            raise BadInput(f"model: {ours} is not given, so there is no model to build. Give it, or let size fill it")
        if not first_of(default, FIELD_NAMES[ours]):
            raise BadInput(f"model: architecture {default.model_type!r} has no field for {ours}, so it cannot be built from a recipe. Use a decoder such as {DECODERS}")
    return {
        FIELD_NAMES["hidden_size"][0]: config.hidden_size,
        FIELD_NAMES["layers"][0]: config.layers,
        **_heads(config, default, told),
        **_feed_forward(config, default, told),
        **_context(config, default, pad_id),
        "tie_word_embeddings": config.tie_embeddings,
    }


def _heads(config: ModelConfig, default: PreTrainedConfig, told: list[str]) -> dict[str, Any]:
    """Attention heads, each with keys and values of its own; a state-space model's heads are those of its inner width."""
    name = first_of(default, FIELD_NAMES["heads"])
    if name is None:
        _refuse_given(config, default, "heads", "it has no attention")
        return {}
    if has(default, "expand"):  # Mamba-2: heads x head_dim = expand x width
        return _state_space_heads(config, default, told)
    heads = config.heads or natural_heads(config.hidden_size)
    if not config.heads:
        told.append(f"model.heads = {heads} (heads of width {config.hidden_size // heads}: 64, as in GPT-2 and Llama, where it divides)")
    fields = {name: heads}
    if has(default, "num_key_value_heads"):
        fields["num_key_value_heads"] = heads
    width = config.hidden_size // heads
    is_computed = isinstance(getattr(type(default), "head_dim", None), property)
    if has(default, "head_dim") and not is_computed and not has(default, "qk_nope_head_dim"):  # latent attention splits its heads by fields of its own
        fields["head_dim"] = width
    if isinstance(getattr(default, "rotary_dim", None), int):  # GPT-J turns the first dimensions of a head only
        fields["rotary_dim"] = min(default.rotary_dim, width)
    if has(default, "mamba_n_heads") and has(default, "mamba_expand") and not has(default, "mamba_d_ssm"):  # attention and Mamba-2 blocks in turn
        inner = int(default.mamba_expand * config.hidden_size)
        fields |= {"mamba_n_heads": natural_heads(inner), "mamba_d_head": inner // natural_heads(inner)}
    return fields


def _state_space_heads(config: ModelConfig, default: PreTrainedConfig, told: list[str]) -> dict[str, Any]:
    inner = _expansion(config, default) * config.hidden_size
    heads = config.heads or natural_heads(inner)
    if inner % heads:
        raise BadInput(f"model: heads={heads} does not divide the inner width {inner} of {default.model_type!r}, so its heads would be unequal. Leave heads out")
    if not config.heads:
        told.append(f"model.heads = {heads} (heads of width {inner // heads} of the inner width {inner}, as Mamba-2 does)")
    groups = default.n_groups if heads % default.n_groups == 0 else 1
    fields = {"num_heads": heads, "head_dim": inner // heads, "n_groups": groups}
    if "chunk_size" not in config.extra:
        told.append(f"model.extra.chunk_size = {CHUNK_TOKENS} (the same sums, nearly twice as fast on a CPU as the default {default.chunk_size}; a GPU kernel may want that)")
        fields["chunk_size"] = CHUNK_TOKENS
    return fields


def _expansion(config: ModelConfig, default: PreTrainedConfig) -> int:
    """Mamba's inner width over its width."""
    if config.intermediate_size is None:
        return default.expand
    if config.intermediate_size % config.hidden_size:
        raise BadInput(
            f"model: intermediate_size={config.intermediate_size} is the inner width of {default.model_type!r} and no multiple of hidden_size={config.hidden_size}, "
            f"which it must be. Use {default.expand * config.hidden_size}, or leave it out"
        )
    return config.intermediate_size // config.hidden_size


def _feed_forward(config: ModelConfig, default: PreTrainedConfig, told: list[str]) -> dict[str, Any]:
    """The feed-forward width; in a mixture of experts each expert's, while a dense layer among them works as much as a sparse one."""
    if has(default, "expand") and not has(default, "num_attention_heads"):
        return {"expand": _expansion(config, default)}
    name = first_of(default, FIELD_NAMES["intermediate_size"])
    per_token = experts_per_token(default, config.extra)
    own = "moe_intermediate_size" if per_token and has(default, "moe_intermediate_size") else name
    if own is None:  # BLOOM, MPT
        if config.intermediate_size != 4 * config.hidden_size:
            _refuse_given(config, default, "intermediate_size", "it is 4 x hidden_size")
        return {}
    width = config.intermediate_size or natural_intermediate(config.architecture, config.hidden_size, per_token or 1)
    if not config.intermediate_size:
        share = f", shared by the {per_token} experts that read a token" if per_token and per_token > 1 else ""
        told.append(f"model.intermediate_size = {width} (a feed-forward layer of about 8 x width^2 weights{share}; rounded to 64)")
    if per_token:
        told.append(_told_experts(default, config.extra, width))
    if own == name:
        return {own: width}
    shared = {key: width for key in ("shared_expert_intermediate_size",) if has(default, key)}
    return {own: width, **({name: width * per_token} if name else {}), **shared}


def experts_per_token(config: PreTrainedConfig, extra: dict[str, Any] | None = None) -> int | None:
    """How many experts read each token; None where the model is dense."""
    count, chosen = first_of(config, EXPERTS), first_of(config, EXPERTS_PER_TOKEN)
    if not count or not chosen:
        return None
    value = (extra or {}).get(count, getattr(config, count, None))
    return (extra or {}).get(chosen, getattr(config, chosen, None)) if isinstance(value, int) and value > 1 else None


def _told_experts(default: PreTrainedConfig, extra: dict[str, Any], width: int) -> str:
    count, chosen = first_of(default, EXPERTS), first_of(default, EXPERTS_PER_TOKEN)
    total, per_token = extra.get(count, getattr(default, count)), extra.get(chosen, getattr(default, chosen))
    balance = "" if first_of(default, AUXILIARY_COEFFICIENTS) else "; transformers has no loss that keeps these experts equally busy"
    return f"model.extra.{count} = {total}, {chosen} = {per_token} ({'given' if count in extra else 'the default of the architecture'}; each expert is {width} wide{balance})"


def _check_experts(resolved: PreTrainedConfig) -> None:
    """Errors: BadInput where more experts are to read a token than there are."""
    count, per_token = first_of(resolved, EXPERTS), experts_per_token(resolved)
    if per_token and per_token > getattr(resolved, count):
        chosen = first_of(resolved, EXPERTS_PER_TOKEN)
        raise BadInput(f"model: {per_token} experts are to read each token and there are {getattr(resolved, count)}. Set {chosen} under `extra` to at most that, or {count} higher")


def _context(config: ModelConfig, default: PreTrainedConfig, pad_id: int) -> dict[str, Any]:
    """The longest sequence. Where an architecture knows no such limit (Mamba, ALiBi), it is recorded under the common name all the same."""
    before = 2 if default.model_type == "mpnet" else pad_id + 1 if default.model_type in POSITIONS_AFTER_PADDING else 0
    own = first_of(default, FIELD_NAMES["context_tokens"]) or "max_position_embeddings"
    return dict.fromkeys((own, "max_position_embeddings"), config.context_tokens + before)


def _dropout(config: ModelConfig, default: PreTrainedConfig, told: list[str]) -> dict[str, Any]:
    """One share for every dropout that acts while a language model trains, also where it is 0 and the architecture's own default is not."""
    names = [name for name in DROPOUTS if has(default, name)]
    if config.dropout and not names:
        raise BadInput(f"model: dropout={config.dropout} is given and architecture {default.model_type!r} has no dropout: it would be ignored. Set it to 0")
    if config.dropout:
        told.append(f"model.dropout = {config.dropout} acts as {', '.join(names)}")
    return {name: config.dropout for name in names}


def _refuse_given(config: ModelConfig, default: PreTrainedConfig, ours: str, why: str) -> None:
    if getattr(config, ours) is not None:
        raise BadInput(f"model: {ours}={getattr(config, ours)} is given and architecture {default.model_type!r} has no such field ({why}): it would be ignored. Leave it out")


def rejected(config: ModelConfig, error: Exception) -> BadInput:
    return BadInput(f"model: transformers cannot build architecture={config.architecture!r} from this section ({_line(error)}). Correct the field it names, or the ones under `extra`")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
