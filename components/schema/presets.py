"""One dial: `model.size: 10m` becomes a whole recipe, every value of it by a published rule that is told.

| value | rule |
|---|---|
| width, layers | the pair that comes within 5 % of the size with width/layers nearest to 64 (GPT-3 125M, arXiv:2005.14165; Kaplan et al. 2020, arXiv:2001.08361: loss hardly depends on it) |
| heads | of width 64 (GPT-2, GPT-3, Pythia), so the width is a multiple of 64; above 512 of 128, so that two processes can share them |
| feed-forward | 8 x width^2 weights: 4 x width with two matrices (Vaswani et al. 2017, arXiv:1706.03762), 8/3 x width with three (Shazeer 2020, arXiv:2002.05202; Llama) |
| tokens | 20 for each parameter that reads a token (Chinchilla: Hoffmann et al. 2022, arXiv:2203.15556) |
| batch | 0.2920 C^0.3271 tokens, with C = 6 N D floating point operations (DeepSeek LLM: arXiv:2401.02954, section 3.1) |
| learning rate | 0.3118 C^-0.1250 (the same) |
| warm-up | 2 / (1 - beta2) steps (Ma and Yarats 2019, arXiv:1910.04209), or 1 % of the steps where that is more, at most a tenth |

The size counts every parameter: embeddings too where the size of the vocabulary is known, all experts of a mixture. What is given in
the recipe is never changed. DeepSeek's laws were fitted between 1e17 and 2e19 operations with next-token prediction and AdamW; outside that they
are a start, and a line says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.schema.config import BadInput
from components.schema.training import ModelConfig, OptimConfig

TOKENS_PER_PARAMETER = 20
ASPECT = 64
FITTED_COMPUTE = (1e17, 2e19)
SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([mb])$", re.IGNORECASE)


@dataclass(frozen=True)
class Family:
    """What a block of an architecture is made of, as far as its parameters go; biases and norms are left out (below 2 %)."""

    matrices: int = 3
    """Of a feed-forward layer: 3 where a gate multiplies it, else 2."""
    learned_positions: bool = False
    one_key: bool = False
    """All heads share one key and one value head of width 64 (multi-query attention)."""
    masked_head: bool = False
    """One more width x width matrix in front of the output layer."""
    experts: tuple[str, int, str, int] | None = None
    """Field and default of how many there are, field and default of how many read a token."""
    shared_expert: bool = False
    recurrent: str | None = None
    """mamba, mamba2 or rwkv: no attention."""


_PLAIN, _ENCODER = Family(matrices=2), Family(matrices=2, learned_positions=True, masked_head=True)
_GPT2 = Family(matrices=2, learned_positions=True)
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "olmo", "olmo2", "olmo3", "smollm3", "phi3", "granite", "stablelm"), Family()),
    **dict.fromkeys(("gpt_neox", "gptj", "bloom", "mpt", "phi", "starcoder2", "nemotron", "arcee"), _PLAIN),
    **dict.fromkeys(("gpt2", "opt"), _GPT2),
    "falcon": Family(matrices=2, one_key=True),
    "gpt_bigcode": Family(matrices=2, one_key=True, learned_positions=True),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "distilbert"), _ENCODER),
    "modernbert": Family(masked_head=True),
    **dict.fromkeys(("mixtral",), Family(experts=("num_local_experts", 8, "num_experts_per_tok", 2))),
    "phimoe": Family(experts=("num_local_experts", 16, "num_experts_per_tok", 2)),
    "qwen2_moe": Family(experts=("num_experts", 60, "num_experts_per_tok", 4), shared_expert=True),
    "qwen3_moe": Family(experts=("num_experts", 128, "num_experts_per_tok", 8)),
    "olmoe": Family(experts=("num_experts", 64, "num_experts_per_tok", 8)),
    **dict.fromkeys(("mamba", "falcon_mamba"), Family(recurrent="mamba")),
    "mamba2": Family(recurrent="mamba2"),
    "rwkv": Family(recurrent="rwkv", matrices=2),
}


@dataclass(frozen=True)
class Shape:
    """A model as this file counts it."""

    family: Family
    width: int
    layers: int
    intermediate: int
    vocabulary: int
    """Rows of the embedding; 0 = not known, and then embeddings are not counted."""
    context: int
    tied: bool = True
    experts: int = 1
    per_token: int = 1

    def parameters(self, active: bool = False) -> int:
        """All of them, or (active) those that read a token: of a mixture only the experts that it is sent to."""
        return self.layers * self._block(self.per_token if active else self.experts) + self._around()

    def _block(self, experts: int) -> int:
        if self.family.recurrent:
            return _recurrent_block(self.family.recurrent, self.width, self.intermediate)
        experts += self.family.shared_expert
        router = self.width * self.experts if self.family.experts else 0
        attention = 2 * self.width**2 + 2 * self.width * (64 if self.family.one_key else self.width)
        return attention + experts * self.family.matrices * self.width * self.intermediate + router

    def _around(self) -> int:
        if not self.vocabulary:
            return 0
        embeddings = self.vocabulary * self.width * (1 if self.tied else 2)
        return embeddings + self.family.learned_positions * self.context * self.width + self.family.masked_head * self.width**2


def _recurrent_block(kind: str, width: int, intermediate: int) -> int:
    """Parameters of one block at its architecture's default state and expansion."""
    if kind == "rwkv":
        return 5 * width**2 + 2 * width * intermediate
    inner = 2 * width
    if kind == "mamba2":  # in: gate, input, B, C of 128, dt for each head of 64; out; convolution of 4
        heads = inner // 64
        state = 2 * 128 * (8 if heads % 8 == 0 else 1)
        return width * (2 * inner + state + heads) + inner * width + 5 * (inner + state)
    rank, state = math.ceil(width / 16), 16  # in, out, to dt B C, from dt, A, convolution of 4
    return 3 * width * inner + inner * (rank + 2 * state) + rank * inner + inner * state + 7 * inner


# ---------------------------------------------------------------- natural rules, for every model that leaves a field out


def natural_heads(width: int) -> int:
    """Heads of width 64 where that divides; else of the even width nearest to 64 that does (the narrower of two)."""
    fits = [h for h in range(1, width // 2 + 1) if width % h == 0 and (width // h) % 2 == 0]
    return min(fits, key=lambda heads: (abs(width // heads - 64), -heads), default=1)


def natural_intermediate(architecture: str, width: int, per_token: int = 1) -> int:
    """The feed-forward width that makes about 8 x width^2 weights, over the experts that read one token; a multiple of 64."""
    return 64 * max(1, round(8 * width / family(architecture).matrices / per_token / 64))


def family(architecture: str) -> Family:
    """An architecture that is not in the table is counted as Llama is."""
    return FAMILIES.get(architecture, Family())


# ---------------------------------------------------------------- the dial


def fill(raw: dict[str, Any], vocab_size: int | None = None) -> tuple[dict[str, Any], list[str]]:
    """A raw recipe whose model.size is given, with every field that is not given filled; and a line for each.

    `raw` itself is not changed. Without a size, or where a value has the wrong type (which validation will explain), it comes back as it is.
    Errors: BadInput for a size that is none, or that no model can have.
    """
    model, pretrain = raw.get("model"), raw.get("pretrain") or {}
    if not isinstance(model, dict) or not isinstance(pretrain, dict) or model.get("size") is None or model.get("init_from"):
        return raw, []
    target = parse(model["size"])
    if _is_malformed(model, pretrain):
        return raw, []
    lines: list[str] = []
    shape = _shape(target, model, vocab_size)
    model = _fill_model(model, shape, target, lines)
    pretrain = _fill_training(pretrain, shape, lines)
    return {**raw, "model": model, "pretrain": pretrain}, lines


def parse(size: Any) -> int:
    """Parameters that `10m`, `1.5b` ask for. Errors: BadInput."""
    match = SIZE.match(str(size).strip())
    if not match or float(match[1]) == 0:
        raise BadInput(f"model: size={size!r} is no size, so no model follows from it. Write a number with m or b (million, billion parameters), such as 10m or 1.5b")
    return round(float(match[1]) * {"m": 1e6, "b": 1e9}[match[2].lower()])


def shape_of(model: Mapping[str, Any], vocab_size: int | None) -> Shape:
    """A model whose layers and width are given, as this file counts it."""
    return _of_layers(model["layers"], model["hidden_size"], dict(model), vocab_size)


def _is_malformed(model: dict[str, Any], pretrain: dict[str, Any]) -> bool:
    whole = [model.get(key) for key in ("hidden_size", "layers", "heads", "intermediate_size", "context_tokens")] + [pretrain.get(key) for key in ("steps", "batch_size", "warmup_steps")]
    extra = model.get("extra") or {}
    wrong = [value for value in whole if value is not None and (type(value) is not int or value < 0)]
    return bool(wrong) or not isinstance(extra, dict) or any(type(value) is not int or value < 1 for key, value in extra.items() if "experts" in key and key.startswith("num"))


def _shape(target: int, model: dict[str, Any], vocab_size: int | None) -> Shape:
    """The shape nearest to `target` parameters that keeps what is given. Errors: BadInput where nothing comes within 10 %."""
    candidates = list(_candidates(target, model, vocab_size))
    off = {shape: abs(shape.parameters() / target - 1) for shape in candidates}
    near = [shape for shape in candidates if off[shape] <= 0.05] or [shape for shape in candidates if off[shape] <= 0.1]
    if near:
        return min(near, key=lambda shape: (abs(math.log(shape.width / shape.layers / ASPECT)), off[shape]))
    best = min(candidates, key=lambda shape: off[shape])
    if model.get("hidden_size") or model.get("layers") or model.get("intermediate_size"):
        return best  # what is given wins; the line says how far off it is
    raise BadInput(
        f"model: size={model['size']} cannot be had: the nearest {model.get('architecture', 'llama')} has {best.parameters() / 1e6:,.2f}M parameters, of which "
        f"{best.vocabulary * best.width / 1e6:,.2f}M are the embedding of {best.vocabulary} tokens. Use a larger size, a smaller data.tokenizer.vocab_size, or give hidden_size and layers"
    )


def _candidates(target: int, model: dict[str, Any], vocab_size: int | None) -> Iterator[Shape]:
    """For each width the numbers of layers around the one that reaches the target."""
    heads = model.get("heads") or 1
    most = 64 * (2 + math.isqrt(target // 4) // 64)
    widths = [model["hidden_size"]] if model.get("hidden_size") else [w for w in range(64, most, 64) if w % (2 * heads) == 0 and (w <= 512 or w % 128 == 0)] or [64 * heads]
    for width in widths:
        one, two = (_of_layers(n, width, model, vocab_size) for n in (1, 2))
        block = two.parameters() - one.parameters()
        wanted = (target - one.parameters()) / block + 1
        for layers in {model["layers"]} if model.get("layers") else {max(2, math.floor(wanted)), max(2, math.ceil(wanted))}:
            yield _of_layers(layers, width, model, vocab_size)


def _of_layers(layers: int, width: int, model: dict[str, Any], vocab_size: int | None) -> Shape:
    architecture = model.get("architecture", _default("architecture"))
    kind, extra = family(architecture), model.get("extra") or {}
    count, per_token = (extra.get(kind.experts[0], kind.experts[1]), extra.get(kind.experts[2], kind.experts[3])) if kind.experts else (1, 1)
    return Shape(
        family=kind,
        width=width,
        layers=layers,
        intermediate=model.get("intermediate_size") or natural_intermediate(architecture, width, per_token),
        vocabulary=vocab_size or 0,
        context=model.get("context_tokens", _default("context_tokens")),
        tied=model.get("tie_embeddings", _default("tie_embeddings")),
        experts=count,
        per_token=per_token,
    )


def _default(field: str) -> Any:
    return ModelConfig.model_fields[field].default


def _fill_model(model: dict[str, Any], shape: Shape, target: int, lines: list[str]) -> dict[str, Any]:
    count = shape.parameters()
    counted = f"with {shape.vocabulary} tokens of vocabulary" if shape.vocabulary else "without embeddings: the vocabulary is not known yet"
    active = f", {shape.parameters(active=True) / 1e6:,.3g}M of them for each token" if shape.experts > 1 else ""
    lines.append(f"model.size = {model['size']}: {count / 1e6:,.3g}M parameters, {100 * (count / target - 1):+.1f} % ({counted}){active}")
    if model.get("architecture", "llama") not in FAMILIES:
        lines.append(f"model.architecture = {model['architecture']} is counted as llama is: look at the parameters that the built model reports")
    ratio = shape.width / shape.layers
    values = {
        "hidden_size": (shape.width, "a multiple of 64, so that heads are 64 wide; above 512 of 128"),
        "layers": (shape.layers, f"width/layers = {ratio:.0f}; published families lie between 40 and 130, GPT-3 125M at 64"),
    }
    if not shape.family.recurrent:
        heads = natural_heads(shape.width)
        values["heads"] = (heads, f"heads of {shape.width // heads}, as in GPT-2 and GPT-3")
    if not shape.family.recurrent or shape.family.recurrent == "rwkv":
        share = f" over {shape.per_token} experts" if shape.per_token > 1 else ""
        values["intermediate_size"] = (shape.intermediate, f"{8 / shape.family.matrices:.3g} x width{share}, rounded to 64; Shazeer 2020, arXiv:2002.05202")
    return _fill_section("model", model, values, lines)


def _fill_training(pretrain: dict[str, Any], shape: Shape, lines: list[str]) -> dict[str, Any]:
    """Batch, horizon and learning rate from N, the parameters that read a token, and D, the tokens."""
    n = shape.parameters(active=True)
    batch, steps = pretrain.get("batch_size"), pretrain.get("steps")
    batch_rule = "0.2920 C^0.3271 tokens; DeepSeek LLM, arXiv:2401.02954"
    if not batch:
        tokens = best_batch(n, steps=steps) if steps else best_batch(n, tokens=TOKENS_PER_PARAMETER * n)
        batch = _sequences(tokens / shape.context)
    if not steps:
        steps = max(2, round(TOKENS_PER_PARAMETER * n / (batch * shape.context)))
    tokens = steps * batch * shape.context
    compute = 6 * n * tokens
    warmup = _warmup(steps, pretrain)
    values = {
        "batch_size": (batch, f"{batch * shape.context:,} tokens; {batch_rule}"),
        "steps": (steps, f"{tokens / 1e6:,.4g}M tokens, {tokens / n:.3g} for each parameter; Chinchilla's {TOKENS_PER_PARAMETER}, arXiv:2203.15556"),
        "learning_rate": (best_learning_rate(compute), f"0.3118 C^-0.1250 at C = 6 N D = {compute:.2g}; DeepSeek LLM, arXiv:2401.02954"),
        "warmup_steps": (warmup, "2/(1 - beta2), arXiv:1910.04209, or 1 % of the steps; at most a tenth of them"),
    }
    filled = _fill_section("pretrain", pretrain, values, lines)
    if not FITTED_COMPUTE[0] <= compute <= FITTED_COMPUTE[1] and not {"batch_size", "learning_rate"} <= pretrain.keys():
        lines.append(f"pretrain: C = {compute:.2g} lies outside the {FITTED_COMPUTE[0]:.0e} to {FITTED_COMPUTE[1]:.0e} that DeepSeek's laws were fitted on: try half and twice the learning rate")
    return filled


def best_batch(parameters: int, *, tokens: float | None = None, steps: int | None = None) -> float:
    """DeepSeek's best batch in tokens, B = 0.2920 C^0.3271 with C = 6 N D; D is given, or D = steps x B and the equation is solved for B."""
    if tokens is not None:
        return 0.2920 * (6 * parameters * tokens) ** 0.3271
    assert steps is not None
    return (0.2920 * (6 * parameters * steps) ** 0.3271) ** (1 / (1 - 0.3271))


def best_learning_rate(compute: float) -> float:
    """DeepSeek's best peak learning rate of AdamW, in two digits: a third would say more than the law knows."""
    return float(f"{0.3118 * compute**-0.1250:.1e}")


def _sequences(wanted: float) -> int:
    """Whole sequences; a multiple of 8 where there are that many, so that processes and micro-batches divide it."""
    return max(1, round(wanted)) if wanted < 8 else 8 * round(wanted / 8)


def _warmup(steps: int, pretrain: dict[str, Any]) -> int:
    beta2 = OptimConfig.model_fields["betas"].default[1]
    given = pretrain.get("betas")
    if isinstance(given, list | tuple) and len(given) == 2 and isinstance(given[1], float) and given[1] < 1:
        beta2 = given[1]
    return min(max(round(2 / (1 - beta2)), steps // 100), steps // 10)


def _fill_section(name: str, section: dict[str, Any], values: dict[str, tuple[Any, str]], lines: list[str]) -> dict[str, Any]:
    """Fill what is not given, and say why; what is given wins."""
    missing = {key: value for key, value in values.items() if section.get(key) is None}
    lines += [f"{name}.{key} = {value:{',' if isinstance(value, int) else ''}} ({why})" for key, (value, why) in missing.items()]
    return {**section, **{key: value for key, (value, _) in missing.items()}}
