"""The model and pretrain sections of a recipe, and what all training shares: what is built, what it learns from, how it is optimised."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from components.schema.config import Config, Fraction

Schedule = Literal["cosine", "linear", "wsd", "constant", "inverse_sqrt"]
Precision = Literal["fp32", "bf16", "fp16"]


class ModelConfig(Config):
    """A model built by transformers from its configuration, or begun from weights that exist."""

    architecture: str = "llama"
    """transformers' model_type: llama, qwen2, gpt2, mixtral, mamba, ...; with objective masked an encoder such as modernbert."""
    size: str | None = None
    """One dial: 2m, 10m, 60m, 350m, 1b, ... (parameters). Fills every dimension, batch, learning rate and horizon that is not given (schema/presets.py)."""
    init_from: str | None = None
    """Begin from these weights instead of random ones: a hub id, a local folder, or models:/name@alias. Its own configuration is used; the vocabulary is
    resized where the tokenizer differs."""
    hidden_size: PositiveInt | None = None
    """Width of the residual stream."""
    layers: PositiveInt | None = None
    """Number of blocks."""
    heads: PositiveInt | None = None
    """Attention heads; must divide hidden_size. Left out where the architecture has none."""
    intermediate_size: PositiveInt | None = None
    """Width of the feed-forward layer (of each expert, in a mixture of experts)."""
    context_tokens: Annotated[int, Field(ge=32)] = 256
    """Longest sequence the model reads, in tokens."""
    tie_embeddings: bool = True
    """Share the input and output embedding matrices."""
    dropout: Fraction = 0.0
    """Share of activations that training drops, where the architecture has dropout."""
    extra: dict[str, Any] = {}
    """Further fields of the architecture's own transformers configuration."""

    @field_validator("extra")
    @classmethod
    def _say_whole_numbers_as_such(cls, extra: dict[str, Any]) -> dict[str, Any]:
        """1.0 is 1, at any depth: a form in a browser cannot tell them apart, and the same model must have one identity."""
        return {name: _whole(value) for name, value in extra.items()}

    @model_validator(mode="after")
    def _is_said_once(self) -> ModelConfig:
        dimensions = {name: getattr(self, name) for name in ("hidden_size", "layers", "heads", "intermediate_size")}
        given = [name for name, value in dimensions.items() if value is not None]
        if self.init_from and (given or self.size):
            raise ValueError(f"init_from={self.init_from!r} brings its own dimensions, and {', '.join(given) or 'size'} is given too: one of them would be ignored. Remove it")
        if not self.init_from and not self.size and (missing := [name for name in ("hidden_size", "layers") if not dimensions[name]]):
            raise ValueError(f"{' and '.join(missing)} not given, so there is no model to build. Give them, a size such as 10m, or init_from")
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if not self.hidden_size or not self.heads:
            return self
        if self.hidden_size % self.heads:
            fits = [h for h in range(1, 65) if self.hidden_size % h == 0]
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of heads={self.heads}: heads would have unequal widths. Use heads in {fits}")
        if (self.hidden_size // self.heads) % 2:
            raise ValueError(f"hidden_size/heads={self.hidden_size // self.heads} is odd: rotary positions need pairs. Choose an even width per head")
        return self


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class OptimConfig(Config):
    """How weights are changed: optimizer, schedule, batch, and what guards them."""

    steps: PositiveInt
    """Optimizer steps."""
    batch_size: PositiveInt
    """Sequences (pretraining, SFT) or pairs (reward model) in each optimizer step, over all processes together."""
    learning_rate: PositiveFloat
    """Peak learning rate (of AdamW; with muon, of everything that is not a matrix of a block)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw: Loshchilov and Hutter 2019, arXiv:1711.05101. muon: Jordan 2024 for the matrices of the blocks, AdamW for the rest."""
    muon_learning_rate: PositiveFloat = 0.02
    """Peak learning rate of Muon's matrices, in the spectral norm of an update."""
    muon_momentum: Fraction = 0.95
    """Muon's Nesterov momentum."""
    schedule: Schedule = "cosine"
    """After the warm-up: cosine or linear down to min_learning_rate_ratio; wsd: constant, then linear over the last decay_fraction (warmup-stable-decay,
    Hu et al. 2024, arXiv:2404.06395); constant; inverse_sqrt: sqrt(warmup/t) (Vaswani et al. 2017, arXiv:1706.03762)."""
    warmup_steps: NonNegativeInt = 20
    """Steps of linear warm-up from zero."""
    decay_fraction: Fraction = 0.2
    """Share of the steps in which wsd decays."""
    min_learning_rate_ratio: Fraction = 0.1
    """Learning rate at the last step, as a share of the peak (cosine, linear, wsd)."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay of matrices; norms, biases and other vectors are never decayed."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's moment coefficients."""
    grad_clip_norm: PositiveFloat = 1.0
    """Gradients are scaled down to at most this global norm."""
    skip_spikes: PositiveFloat | None = None
    """Leave out a step whose gradient norm is more than this many times the median of the last 128; empty = never."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep an exponential moving average of the weights, decay per step; it is what is measured and saved. Empty = the weights themselves."""
    precision: Precision = "fp32"
    """fp32; bf16 or fp16 for the matrix products with weights and moments in fp32 (fp16 with a loss scaler)."""
    checkpoint_every_steps: PositiveInt = 50
    """A killed run goes on from the last multiple of this many steps, or from a checkpoint made by time or by SIGTERM."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """How many of the newest checkpoints are kept."""

    @model_validator(mode="after")
    def _warmup_ends(self) -> OptimConfig:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} is not below steps={self.steps}: the peak learning rate would never be reached. Lower warmup_steps")
        if self.schedule == "inverse_sqrt" and not self.warmup_steps:
            raise ValueError("schedule inverse_sqrt is lr * sqrt(warmup/t) and warmup_steps is 0: the learning rate would be 0. Give warmup_steps")
        return self


class BatchRamp(Config):
    """Small batches first: base * 2^floor(step / interval_steps), at most batch_size."""

    base: PositiveInt
    """Sequences in a step at the beginning."""
    interval_steps: PositiveInt
    """Steps after which the batch doubles."""


class PretrainConfig(OptimConfig):
    """Learning from raw text in packed sequences of context_tokens."""

    objective: Literal["next_token", "masked"] = "next_token"
    """next_token: a causal model. masked: an encoder that restores masked tokens (Devlin et al. 2019, arXiv:1810.04805)."""
    mask_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that a masked objective asks for; of these 80 % are masked, 10 % replaced, 10 % left."""
    z_loss: NonNegativeFloat = 0.0
    """Weight of log(Z)^2, which keeps logits from drifting (PaLM, Chowdhery et al. 2022, arXiv:2204.02311; they take 1e-4)."""
    label_smoothing: Fraction = 0.0
    """Share of the target's probability that is spread over the vocabulary."""
    batch_ramp: BatchRamp | None = None
    """Begin with smaller batches; empty = batch_size from the start."""
    heldout_sequences: PositiveInt = 64
    """Held-out sequences on which bits per byte are measured before and after, and as many of each domain."""
    validate_every_steps: NonNegativeInt = 0
    """Measure each domain's held-out loss during training; 0 = before and after only."""
    sample_every_steps: NonNegativeInt = 0
    """Write down a few continuations during training; 0 = at the end only."""
