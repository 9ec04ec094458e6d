"""How much memory a training run will need, before it runs: part by part, in bytes for each process.

Parameters are counted exactly, on the very model that would be built (torch's meta device: shapes without memory). What a
block keeps for the backward pass follows Korthikanti et al. 2022 (arXiv:2205.05198, section 4), changed in three ways: attention
goes through SDPA, so the (heads x T x T) matrices of their 5as/h term are never stored; norms and gates are counted as transformers
computes them, tensor by tensor; elements are 4 bytes wide in fp32, and under autocast 4 in the residual stream and 2 in the
products. B = sequences at once, T = tokens of a sequence, d = width, f = feed-forward width, V = vocabulary.

    estimate = estimate(model, vocab_size, sequences=16)
    print("\\n".join(estimate.lines()))
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from components.models.architectures import AUTO, Objective, configure, experts_per_token, first_of, rejected
from components.schema.config import BadInput
from components.schema.presets import family
from components.schema.recipe import Resources
from components.schema.training import ModelConfig, OptimConfig

FP32, HALF = 4, 2
# Elements that an activation function of f elements keeps, its output included; those not named keep input and output.
KEPT_BY_ACTIVATION = {"gelu_new": 5, "gelu_fast": 5}
# What a block keeps besides, in widths: norms of queries and keys, norms behind the layers, rotated copies of a joint projection.
KEPT_BESIDES = {"qwen3": 4, "qwen3_moe": 4, "olmoe": 4, "gemma2": 8, "gpt_neox": 2}
PROBED_TOKENS = 512  # of a recurrent block; what it keeps for a token does not depend on how many there are
# glibc's malloc keeps freed memory that later tensors do not fit into: half as much again as activations and logits (0.15 to 0.8 over a dozen
# shapes on a CPU), or, where every block is computed anew, four blocks (3.4 to 6). MALLOC_MMAP_THRESHOLD_=262144 in the environment makes it next
# to nothing and a step a third slower.
FRAGMENTATION, FRAGMENTATION_BLOCKS = 0.5, 4
LOGITS_KEPT = 3  # float32 (tokens, V) at once: log-probabilities, their gradient, the logits' gradient


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes in one process at the peak of a step."""

    count: int
    """Parameters of the model, those of a tied matrix once."""
    parameters: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    """What the forward pass keeps for the backward pass, the logits apart."""
    logits: int
    allocator: int = 0
    """What the allocator holds and no tensor uses; on a CPU."""
    processes_on_device: int = 1
    """Processes that draw on the same memory: all of them on a CPU, one on a GPU."""

    @property
    def total(self) -> int:
        """Bytes in one process."""
        return self.parameters + self.gradients + self.optimizer + self.ema + self.activations + self.logits + self.allocator

    @property
    def needed(self) -> int:
        """Bytes on one device."""
        return self.total * self.processes_on_device

    def lines(self) -> list[str]:
        """For people: the parts, largest first, and their sum."""
        parts = {name: getattr(self, name) for name in ("parameters", "gradients", "optimizer", "ema", "activations", "logits", "allocator")}
        body = [f"{name:12} {_gib(size):>10}" for name, size in sorted(parts.items(), key=lambda part: -part[1]) if size]
        shared = [f"{'on device':12} {_gib(self.needed):>10}  {self.processes_on_device} processes"] if self.processes_on_device > 1 else []
        return [f"memory for {self.count / 1e6:,.2f}M parameters, estimated for each process:", *body, f"{'total':12} {_gib(self.total):>10}", *shared]


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def estimate(
    config: ModelConfig,
    vocab_size: int,
    *,
    sequences: int,
    objective: Objective = "next_token",
    optimizer: str = "adamw",
    ema: bool = False,
    precision: str = "fp32",
    processes: int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    on_cpu: bool = True,
    activation_checkpointing: bool = False,
    logit_rows: int | None = None,
) -> MemoryEstimate:
    """The memory of training on `sequences` of context_tokens at once in each of `processes`, which stand on `nodes` machines.

    logit_rows: rows of logits that stand at once where the loss is computed in chunks; None = all. strategy fsdp shares weights, gradients and
    moments over the processes, and holds one block whole; tensor shares the blocks' activations too. Errors: BadInput as `architectures.configure`.
    """
    resolved = configure(config, objective, vocab_size).config
    count, matrices = count_shapes(config, objective, vocab_size)
    share = processes if strategy in ("fsdp", "tensor") else 1
    tokens = sequences * config.context_tokens
    block = tokens * bytes_per_token(config, resolved, objective, precision) // (processes if strategy == "tensor" else 1)
    whole_block = (count // config.layers) * FP32 if strategy == "fsdp" else 0
    bucket = count * FP32 if processes > 1 and share == 1 else 0  # DDP's buckets are a second copy of the gradients
    copies = 0 if precision == "fp32" else HALF * count // share  # autocast keeps half-precision copies of the weights for a step
    moments = 2 * count - (matrices if optimizer == "muon" else 0)
    residual = FP32 * tokens * config.hidden_size
    logits = LOGITS_KEPT * FP32 * min(tokens, logit_rows or tokens) * vocab_size
    if activation_checkpointing:  # every block's input; one block anew at a time, when the logits are gone
        activations = (config.layers + 2) * residual + max(block - logits, 0)
    else:
        activations = config.layers * block + 2 * residual
    return MemoryEstimate(
        count=count,
        parameters=FP32 * count // share + whole_block + copies,
        gradients=FP32 * count // share + bucket,
        optimizer=FP32 * moments // share,
        ema=FP32 * count // share if ema else 0,
        activations=activations,
        logits=logits,
        allocator=(FRAGMENTATION_BLOCKS * block if activation_checkpointing else int(FRAGMENTATION * (activations + logits))) if on_cpu else 0,
        processes_on_device=processes // nodes if on_cpu else 1,
    )


def for_training(config: ModelConfig, vocab_size: int, section: OptimConfig, resources: Resources, logit_rows: int | None = None) -> MemoryEstimate:
    """The estimate of a recipe's section on this machine: what stands at once is the micro-batch, or a process's share of the batch."""
    processes = resources.processes * resources.nodes
    sharing = 1 if resources.strategy == "tensor" else processes
    return estimate(
        config,
        vocab_size,
        sequences=resources.micro_batch_size or -(-section.batch_size // sharing),
        objective=getattr(section, "objective", "next_token"),
        optimizer=section.optimizer,
        ema=section.ema_decay is not None,
        precision=section.precision,
        processes=processes,
        nodes=resources.nodes,
        strategy=resources.strategy,
        on_cpu=not _on_gpu(resources.accelerator),
        activation_checkpointing=resources.activation_checkpointing,
        logit_rows=logit_rows,
    )


# ---------------------------------------------------------------- parameters


@lru_cache(maxsize=64)
def _count(key: str, objective: Objective, vocab_size: int) -> tuple[int, int]:
    config = ModelConfig.model_validate_json(key)
    model = _on_meta(config, configure(config, objective, vocab_size).config, objective)
    outer = (model.get_input_embeddings(), model.get_output_embeddings())
    around = {id(p) for layer in outer if layer is not None for p in layer.parameters()}
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.ndim >= 2 and id(p) not in around)


def count_shapes(config: ModelConfig, objective: Objective, vocab_size: int) -> tuple[int, int]:
    """Parameters of the model that would be built, and of these the ones in matrices other than the embeddings (Muon's)."""
    return _count(config.model_dump_json(), objective, vocab_size)


def _on_meta(config: ModelConfig, resolved: PreTrainedConfig, objective: Objective) -> PreTrainedModel:
    """The model in shapes only: nothing is allocated, whatever its size."""
    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return AUTO[objective].from_config(resolved)
        except Exception as error:  # whatever modelling code trips over
            raise rejected(config, error) from error


@contextmanager
def quiet() -> Iterator[None]:
    """transformers says nothing below an error meanwhile."""
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)


# ---------------------------------------------------------------- activations


def bytes_per_token(config: ModelConfig, resolved: PreTrainedConfig, objective: Objective = "next_token", precision: str = "fp32") -> int:
    """What one block keeps of one token for the backward pass."""
    if family(config.architecture).recurrent or first_of(resolved, ("num_attention_heads",)) is None:
        return _probed(config.model_dump_json(), objective)
    stream, products = transformer_elements(config, resolved)
    return FP32 * stream + (FP32 if precision == "fp32" else HALF) * products


def transformer_elements(config: ModelConfig, resolved: PreTrainedConfig) -> tuple[int, int]:
    """Elements that one attention block keeps of one token: (in the residual stream's precision, in the products').

    RMSNorm as transformers writes it keeps its input and the normalised input, LayerNorm its input; either's output goes into a product.
    Attention keeps q, k, v and its output; SDPA with dropout also keeps its probabilities, twice, since CPU kernels without them have no dropout.
    """
    kind, d = family(config.architecture), config.hidden_size
    gated = kind.matrices == 3
    name = first_of(resolved, ("moe_intermediate_size",)) or first_of(resolved, ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim"))
    f = (name and getattr(resolved, name)) or 4 * d
    act = next((value for field in ("hidden_act", "activation_function", "hidden_activation") if (value := getattr(resolved, field, None))), "")
    feed_forward = 4 * f if gated else KEPT_BY_ACTIVATION.get(act, 2) * f
    experts = experts_per_token(resolved)
    if experts:
        feed_forward = (experts + kind.shared_expert) * (feed_forward + 2 * d)  # each expert's rows are gathered and put back
    heads, keys = resolved.num_attention_heads, getattr(resolved, "num_key_value_heads", None) or resolved.num_attention_heads
    attention = 2 * d + 2 * d * keys // heads
    probabilities = 3 * heads * config.context_tokens if config.dropout else 0
    return (4 * d if gated else 2 * d), 2 * d + attention + KEPT_BESIDES.get(config.architecture, 0) * d + feed_forward + probabilities


@lru_cache(maxsize=64)
def _probed(key: str, objective: Objective) -> int:
    """Bytes that autograd keeps of one token in one more block: counted on the meta device, where nothing is allocated."""
    config = ModelConfig.model_validate_json(key)
    tokens = min(config.context_tokens, PROBED_TOKENS)
    sizes = []
    for layers in (2, 3):
        resolved = configure(config.model_copy(update={"layers": layers}), objective, 256).config
        model = _on_meta(config, resolved, objective).base_model
        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        with quiet():
            sizes.append(saved_bytes(model, input_ids=ids, use_cache=False))
    return (sizes[1] - sizes[0]) // tokens


def saved_bytes(model: torch.nn.Module, **inputs: object) -> int:
    """Bytes of everything that a forward pass leaves for the backward pass, parameters and buffers apart, each storage once."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(**inputs)
        del output
    return sum(storage.nbytes() for storage in kept.values())


# ---------------------------------------------------------------- what is there


def refuse_impossible_size(config: ModelConfig, vocab_size: int, objective: Objective = "next_token") -> None:
    """Refuse, before a byte is allocated, a model of which not even one sequence can be trained here. Errors: BadInput."""
    least = estimate(config, vocab_size, sequences=1, objective=objective, activation_checkpointing=True, logit_rows=1)
    shards = int(os.environ.get("WORLD_SIZE", "1")) if torch.cuda.is_available() else 1  # GPUs may share one model, processes on a CPU share its memory
    refuse(least, config, free=available_bytes() * shards)


def refuse(memory: MemoryEstimate, config: ModelConfig, free: int | None = None) -> None:
    """Refuse a run that `free` bytes (default: what is available now) cannot hold. Errors: BadInput."""
    free = available_bytes() if free is None else free
    if memory.needed <= free:
        return
    fixed = memory.total - (passing := memory.activations + memory.logits + memory.allocator)
    advice = (
        f"Lower hidden_size={config.hidden_size}, layers={config.layers} or intermediate_size={config.intermediate_size}"
        if fixed * memory.processes_on_device > free / 2
        else "Set micro_batch_size lower or activation_checkpointing: true in the resources, or lower model.context_tokens or batch_size"
    )
    raise BadInput(
        f"model: about {memory.count / 1e6:,.0f}M parameters need {memory.needed / 2**30:,.1f} GiB to train ({fixed / 2**30:,.1f} GiB of weights, gradients and moments and "
        f"{passing / 2**30:,.1f} GiB of activations in each of {memory.processes_on_device} process(es)), and {free / 2**30:,.1f} GiB are free: "
        f"the process would be killed. {advice}"
    )


def available_bytes() -> int:
    """Memory that can be had without swapping: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        return next(int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _on_gpu(accelerator: str) -> bool:
    return accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available())
