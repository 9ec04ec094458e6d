"""Several processes train one model: who is who, what each one reads, and how the model is cut.

Processes are started by torchrun, which says by RANK and WORLD_SIZE who is who (`python -m torch.distributed.run --nproc-per-node 2 -m
components STAGE ...`). A batch is always the whole batch of a step; each process takes its share of the rows, and goes through it
in micro-batches. So batches and their order depend neither on the number of processes nor on what fits in memory.

- ddp: a copy of the model in each process, gradients averaged (Li et al. 2020, arXiv:2006.15704).
- fsdp: weights, gradients and moments cut over the processes, gathered block by block (FSDP2; Zhao et al. 2023, arXiv:2304.11277).
- tensor: the matrices of each block cut by columns, then by rows, so that two exchanges a block suffice (Shoeybi et al. 2019,
  arXiv:1909.08053, by transformers' own plan for the architecture); every process reads the whole batch.

Where the model is cut, a copy of the module is: the caller's stays whole, and is given the trained weights. Checkpoints hold whole tensors,
gathered one at a time, and load on any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.optim import Optimizer
from transformers import PreTrainedModel

from components.schema.config import BadInput
from components.schema.recipe import Resources

PATIENCE = timedelta(hours=2)  # how long processes wait for one that measures, samples or writes
CUTS = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}


# ---------------------------------------------------------------- who is who


def rank() -> int:
    """Number of this process, from 0. Only number 0 measures, speaks, logs and writes."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes there are, on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def data_share(resources: Resources) -> tuple[int, int]:
    """Which of how many shares of a batch this process reads; under tensor parallelism all read all of it."""
    return (0, 1) if resources.strategy == "tensor" else (rank(), world())


def device_of(accelerator: str) -> torch.device:
    """The device that this process trains on."""
    wants_gpu = accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if wants_gpu else torch.device("cpu")


def check(resources: Resources) -> None:
    """The processes asked for are those that were started. Errors: BadInput."""
    wanted = resources.processes * resources.nodes
    if wanted != world():
        raise BadInput(
            f"training: {wanted} processes are asked for (processes={resources.processes}, nodes={resources.nodes}) and {world()} were started: each would train alone, or wait for ever. "
            f"Start it with `python -m torch.distributed.run --nproc-per-node {resources.processes} -m components ...`, as `modelyard` does"
        )
    if resources.strategy in ("fsdp", "tensor") and wanted == 1:
        raise BadInput(f"training: strategy={resources.strategy} cuts the model over processes, and there is one: nothing would be cut. Raise processes, or leave strategy out")


def join(resources: Resources) -> None:
    """Meet the other processes, where there are some; may be called again."""
    if world() == 1 or distributed.is_initialized():
        return
    device = device_of(resources.accelerator)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


def leave() -> None:
    """Part from the other processes once all have come here. Those that are not the first end here, with exit code 0."""
    if not distributed.is_initialized():
        return
    distributed.barrier()
    distributed.destroy_process_group()
    if rank():
        raise SystemExit(0)


def from_first(value: Any) -> Any:
    """What the first process has, in all of them."""
    if not distributed.is_initialized():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def any_process(*flags: bool) -> tuple[bool, ...]:
    """Each flag, True where it is in any process; the same answer in all."""
    if not distributed.is_initialized():
        return flags
    told = torch.tensor([float(flag) for flag in flags], device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.all_reduce(told)
    return tuple(bool(value) for value in told.tolist())


# ---------------------------------------------------------------- what each process reads


def rows_of(batch: Any) -> int:
    """Rows of a batch: a tensor, or tensors in tuples, lists and dicts, all with rows first. Errors: BadInput where they differ."""
    counts = {tensor.shape[0] for tensor in _tensors(batch)}
    if len(counts) != 1:
        raise BadInput(f"training: a batch's tensors have {sorted(counts)} rows, so it cannot be cut into processes and micro-batches. Give tensors whose first dimension is the batch")
    return counts.pop()


def cut(batch: Any, share: tuple[int, int], micro_batch_size: int | None) -> dict[str, Any]:
    """This process's micro-batches of a batch: {"parts": [(micro-batch, whether it counts)], "elements": of the whole batch's first tensor}.

    Processes have equal numbers of micro-batches, for they meet in each; one that has fewer rows goes through the batch's first row
    again without counting it. So a batch need not be a multiple of anything, nor have a row for each process.
    """
    number, shares = share
    rows = rows_of(batch)
    start, stop = number * rows // shares, (number + 1) * rows // shares
    longest = -(-rows // shares)
    size = min(micro_batch_size or longest, longest)
    if size >= rows:
        parts = [(batch, True)] if stop > start else []
    else:
        parts = [(take(batch, slice(first, min(first + size, stop))), True) for first in range(start, stop, size)]
    parts += [(take(batch, slice(0, 1)), False)] * (-(-longest // size) - len(parts))
    return {"parts": parts, "elements": next(_tensors(batch)).numel()}


def take(batch: Any, rows: slice) -> Any:
    """Some rows of every tensor of a batch; what is no tensor stays as it is."""
    if isinstance(batch, Tensor):
        return batch[rows]
    if isinstance(batch, dict):
        return {name: take(value, rows) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(take(value, rows) for value in batch)
    return batch


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict | list | tuple):
        for value in batch.values() if isinstance(batch, dict) else batch:
            yield from _tensors(value)


def summed(values: Tensor, share: tuple[int, int]) -> Tensor:
    """The sum over all processes that read a share of their own."""
    if share[1] > 1:
        distributed.all_reduce(values)
    return values


# ---------------------------------------------------------------- how the model is cut


def strategy_for(resources: Resources) -> Strategy | str:
    """Lightning's strategy for these resources."""
    if world() == 1:
        return "auto"
    if resources.strategy == "fsdp":
        return Cut(data_parallel_size=world(), tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=PATIENCE)
    if resources.strategy == "tensor":
        return Cut(data_parallel_size=1, tensor_parallel_size=world(), save_distributed_checkpoint=False, timeout=PATIENCE)
    return DDPStrategy(timeout=PATIENCE, gradient_as_bucket_view=True)


def is_cut(resources: Resources) -> bool:
    """Whether the model is cut, so that no process has the whole of it."""
    return world() > 1 and resources.strategy in ("fsdp", "tensor")


def prepare_cut(module: LightningModule, resources: Resources) -> None:
    """Have Lightning cut this module when the processes have met."""
    module.configure_model = lambda: _cut_model(module, resources)  # Lightning's hook for it


def _cut_model(module: LightningModule, resources: Resources) -> None:
    if resources.strategy == "fsdp":
        shard(module, module.device_mesh["data_parallel"])
    else:
        split_matrices(module, module.device_mesh["tensor_parallel"])


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model: the members of its longest list of modules of one class."""
    lists = [list(part) for part in model.modules() if isinstance(part, nn.ModuleList) and len({type(member) for member in part}) == 1]
    return max(lists, key=len, default=[])


def shard(module: LightningModule, mesh: DeviceMesh) -> None:
    """FSDP2: each block, and the rest together. The rest stays gathered during training_step, so a loss may use its weights directly."""
    for block in blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(module, "training_step")


def split_matrices(module: LightningModule, mesh: DeviceMesh) -> None:
    """Tensor parallelism after transformers' plan. What the plan leaves whole is a DTensor too (one kind of parameter for clipping
    and optimizer), and plain inside its module's forward. Errors: BadInput for an architecture that cannot be cut so."""
    for model in _models(module):
        plan = _plan(model, mesh.size())
        for path, kind in plan.items():
            parallelize_module(model.get_submodule(path), mesh, CUTS[kind]())
    seen: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay tied
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            if not isinstance(p, DTensor):
                if p not in seen:
                    seen[p] = nn.Parameter(distribute_tensor(p.detach(), mesh, [Replicate()]), requires_grad=p.requires_grad)
                part.register_parameter(name, seen[p])
        if any(_is_whole(p) for p in part.parameters(recurse=False)) and not isinstance(part, LightningModule):
            part.register_forward_pre_hook(lambda part, args: _open(part))
            part.register_forward_hook(lambda part, args, out: _shut(part), always_call=True)
    step = module.training_step

    def training_step(*args: Any) -> Any:
        with _opened(module):
            return step(*args)

    module.training_step = training_step


def _models(module: nn.Module) -> list[PreTrainedModel]:
    return [child for child in module.children() if isinstance(child, PreTrainedModel)]


def _plan(model: PreTrainedModel, processes: int) -> dict[str, str]:
    """Where each matrix is cut: colwise or rowwise by module path. Errors: BadInput."""
    config = model.config
    known = getattr(config, "base_model_tp_plan", None) or {}
    heads = {name: getattr(config, name) for name in ("num_attention_heads", "num_key_value_heads") if getattr(config, name, None)}
    strange = sorted(set(known.values()) - set(CUTS))
    if not known or strange:
        raise BadInput(
            f"training: strategy=tensor does not know how to cut architecture {config.model_type!r} ({', '.join(strange) or 'transformers has no plan for it'}). "
            "Use fsdp, or an architecture like llama, qwen2, mistral"
        )
    if uneven := [f"{name}={count}" for name, count in heads.items() if count % processes]:
        raise BadInput(f"training: strategy=tensor gives each of {processes} processes whole heads, and {', '.join(uneven)} is no multiple of it. Use fsdp, or another number of processes")
    base = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    paths = [(path, kind) for path, kind in known.items() if "*" in path]
    count = len(blocks(model))
    return {base + path.replace("*", str(i)): kind for path, kind in paths for i in range(count)}


def _is_whole(p: Tensor) -> bool:
    return isinstance(p, DTensor) and all(placement.is_replicate() for placement in p.placements)


def _open(part: nn.Module) -> None:
    """Plain tensors instead of whole DTensors, through which gradients flow back."""
    for name, p in part._parameters.items():
        if p is not None and _is_whole(p):
            part.__dict__.setdefault("_shut_parameters", {})[name] = p
            part._parameters[name] = p.to_local(grad_placements=[Replicate()])


def _shut(part: nn.Module) -> None:
    if not part.__dict__.get("_held_open"):
        part._parameters.update(part.__dict__.pop("_shut_parameters", {}))


@contextmanager
def _opened(module: nn.Module) -> Iterator[None]:
    """All modules outside the blocks are open, so that a loss may use the output layer's weights. The blocks open for themselves, for
    activation checkpointing runs them again in the backward pass."""
    inside = {part for block in blocks(module) for part in block.modules()}
    held = [part for part in module.modules() if part not in inside]
    for part in held:
        part.__dict__["_held_open"] = True
        _open(part)
    try:
        yield
    finally:
        for part in held:
            part.__dict__["_held_open"] = False
            _shut(part)


class Cut(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 and tensor parallelism, with checkpoints like those of one process.

    Lightning's own names optimizer state by the order of module.parameters(), which is not the order of an optimizer with groups: a
    checkpoint of one process would load into the wrong moments. Here both are by position in the optimizer, as torch has it.
    """

    lightning_restore_optimizer = True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {name: whole(value) for name, value in self.lightning_module.state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = getattr(optimizer, "optimizer", optimizer).state_dict()
        return {**state, "state": {i: {name: whole(value) for name, value in kept.items()} for i, kept in state["state"].items()}}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        mine = self.lightning_module.state_dict()
        for name, value in checkpoint["state_dict"].items():
            mine[name].copy_(cut_like(value, mine[name]))

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbered = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {i: {name: cut_like(value, numbered[i]) for name, value in kept.items()} for i, kept in state["state"].items()}
            optimizer.load_state_dict({**state, "state": moments})


def whole(value: Any) -> Any:
    """A cut tensor put together again, on the first process's host memory; all processes must ask. Anything else as it is."""
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor()
    return full.to("cpu") if rank() == 0 else None


def cut_like(value: Any, like: Tensor) -> Any:
    """A whole tensor cut as `like` is, where they are of one shape; anything else as it is."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device, like.dtype), like.device_mesh, like.placements)
    return value


def weights_into(module: nn.Module, state: Callable[[], dict[str, Any]]) -> None:
    """Give the caller's whole module the weights of the cut one, in the first process; all processes must come."""
    gathered = state()
    if rank() == 0:
        module.load_state_dict(gathered)
