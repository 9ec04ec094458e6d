"""Muon against the singular value decomposition, against torch's two optimizers run apart, and over several processes."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from components.training import ema
from components.training.muon import Muon, MuonWithAdamW, hidden_matrices
from components.training.optim import global_norm, make_optimizer

from .small import Small, config, equal, llama, rows, weights

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
LLAMA = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
TAKEN = {
    "llama": [f"model.layers.0.{name}.weight" for name in LLAMA],
    "mixtral": [f"model.layers.0.{name}.weight" for name in LLAMA[:4]] + ["model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"],
    "gpt2": [f"transformer.h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")],
    "mamba": [f"backbone.layers.0.mixer.{name}.weight" for name in ("in_proj", "x_proj", "dt_proj", "out_proj")],
    "modernbert": [f"model.layers.0.{name}.weight" for name in ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")],
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0}


@pytest.mark.parametrize("architecture", TAKEN)
def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else(architecture):
    extra = {"mamba": {"time_step_rank": 2}, "modernbert": SPECIAL, "gpt2": {**SPECIAL, "n_embd": 16, "n_layer": 1, "n_head": 2}}.get(architecture, {})
    settings = transformers.AutoConfig.for_model(architecture, **SMALL, **extra)
    make = transformers.AutoModelForMaskedLM if architecture == "modernbert" else transformers.AutoModelForCausalLM
    model = make.from_config(settings)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert [names[parameter] for parameter in hidden_matrices(model)] == TAKEN[architecture]


def test_what_is_not_trained_is_not_taken():
    model = llama()
    model.model.layers[0].requires_grad_(False)
    assert len(hidden_matrices(model)) == 7


def step_of(gradients: list[torch.Tensor], start: torch.Tensor, **arguments) -> torch.Tensor:
    """What Muon adds to a weight in the last of several steps."""
    weight = nn.Parameter(start.clone())
    optimizer = Muon([weight], **{"lr": 1.0, "weight_decay": 0.0, **arguments})
    for gradient in gradients:
        before, weight.grad = weight.detach().clone(), gradient.clone()
        optimizer.step()
    return weight.detach() - before


def matrix(rows: int, cols: int, seed: int) -> torch.Tensor:
    """A matrix whose singular values lie between 0.2 and 1."""
    torch.manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(rows, cols), full_matrices=False)
    return u * torch.linspace(0.2, 1, min(rows, cols)) @ v


@pytest.mark.parametrize(("rows", "cols", "scale"), [(24, 24, 1.0), (16, 64, 1.0), (64, 16, 2.0)])
def test_an_update_is_the_orthogonal_factor_of_the_nesterov_momentum(rows, cols, scale):
    gradients = [matrix(rows, cols, seed) for seed in range(3)]
    update = step_of(gradients, torch.zeros(rows, cols), momentum=0.9)
    momentum = sum(0.1 * 0.9**age * gradient for age, gradient in enumerate(reversed(gradients)))
    u, _, vh = torch.linalg.svd(0.1 * gradients[-1] + 0.9 * momentum, full_matrices=False)
    seen = -u.T @ update @ vh.T / scale  # the identity, were the update exactly -scale * U V^T
    assert seen.diagonal().min() > 0.65 and seen.diagonal().max() < 1.25  # what five iterations reach
    assert (seen - seen.diagonal().diag()).abs().max() < 0.02
    residue = update - u @ (u.T @ update @ vh.T) @ vh
    assert residue.norm() < 0.02 * update.norm()


def test_the_size_of_a_gradient_does_not_matter_and_the_learning_rate_is_the_spectral_norm():
    gradient, start = matrix(32, 32, 0), torch.zeros(32, 32)
    update = step_of([gradient], start, lr=0.02)
    assert 0.65 * 0.02 < torch.linalg.matrix_norm(update, 2) < 1.25 * 0.02
    assert torch.allclose(step_of([gradient * 1024], start, lr=0.02), update, atol=1e-3 * 0.02)


def test_decay_is_decoupled_and_a_gradient_of_zero_only_decays():
    start = matrix(8, 12, 1)
    assert torch.allclose(step_of([torch.zeros(8, 12)], start, lr=0.1, weight_decay=0.5), -0.05 * start, atol=1e-7)


def test_each_expert_of_a_stack_is_updated_as_if_it_stood_alone():
    gradients = [torch.stack([matrix(24, 12, 10 * i + seed) * (i + 1) for i in range(3)]) for seed in range(2)]
    start = torch.stack([matrix(24, 12, 50 + i) for i in range(3)])
    stack, other = nn.Parameter(start.clone()), nn.Parameter(torch.zeros(2, 2))
    optimizer = Muon([other], lr=0.1, weight_decay=0.1)
    optimizer.add_param_group({"params": [stack]})
    for gradient in gradients:
        stack.grad = gradient.clone()
        optimizer.step()
    for i in range(3):
        alone = nn.Parameter(start[i].clone())
        reference = torch.optim.Muon([alone], lr=0.1, weight_decay=0.1)
        for gradient in gradients:
            alone.grad = gradient[i].clone()
            reference.step()
        assert torch.equal(stack[i], alone)


def learn(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        ids = torch.randint(40, (4, 8))
        model(input_ids=ids, labels=ids).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()


def both(model: nn.Module, fused: bool = True) -> MuonWithAdamW:
    matrices = hidden_matrices(model)
    others = [p for p in model.parameters() if p not in set(matrices)]
    return MuonWithAdamW([{"params": others}], matrices, adamw={"lr": 1e-2, "fused": fused}, muon={"lr": 0.05})


def test_the_two_in_one_do_what_torchs_two_do_apart():
    one, two = llama(), llama()
    learn(one, [both(one)], range(4))
    matrices = hidden_matrices(two)
    others = [p for p in two.parameters() if p not in set(matrices)]
    learn(two, [torch.optim.AdamW(others, lr=1e-2, fused=True), torch.optim.Muon(matrices, lr=0.05)], range(4))
    assert equal(weights(one), weights(two))
    assert not equal(weights(one), weights(llama()))


@pytest.mark.parametrize("fused", [True, False])
def test_its_state_goes_through_a_file_and_the_run_goes_on_to_the_same_bits(fused):
    whole, first, second = llama(), llama(), llama(seed=1)
    learn(whole, [both(whole, fused)], range(6))
    optimizer = both(first, fused)
    learn(first, [optimizer], range(3))
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second.load_state_dict(saved["model"])
    again = both(second, fused)
    again.load_state_dict(saved["optimizer"])
    assert equal(again.state_dict(), optimizer.state_dict())
    learn(second, [again], range(3, 6))
    assert equal(weights(second), weights(whole))


def test_a_scheduler_moves_the_learning_rates_of_both():
    model = llama()
    optimizer = both(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    learn(model, [optimizer], range(1))
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.025]
    before = weights(model)
    optimizer.param_groups[1]["lr"] = 0.0
    learn(model, [optimizer], range(1, 2))
    after = weights(model)
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {name for name, parameter in model.named_parameters() if parameter in set(hidden_matrices(model))}


# ---------------------------------------------------------------- over several processes


class SomeExperts(nn.Module):
    """Three linear maps in one stack, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.randn(3, 6, 6) * 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,eoi->bo", x, self.maps) / 3


class Toy(nn.Module):
    """Numbered blocks, one of them of experts, between an input and an output layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Linear(10, 6)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 7, bias=False), nn.Linear(7, 6), SomeExperts()])
        self.leave = nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x).tanh()
        return self.leave(x)


def toy_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rank: int = 0, world: int = 1) -> list[float]:
    """Steps on a process's share of each batch, clipped; the norms."""
    norms = []
    for step in steps:
        x = torch.randn(8, 10, generator=torch.Generator().manual_seed(step))
        model(x[rank::world]).square().mean().backward()
        gradients = [p.grad for p in model.parameters()]
        norm = global_norm(gradients)
        nn.utils.clip_grads_with_norm_(model.parameters(), 0.1, norm)
        optimizer.step()
        optimizer.zero_grad()
        norms.append(norm.item())
    return norms


def toy_optimizer(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    optimizer = make_optimizer(model, config(optimizer=kind))
    ema.attach(optimizer, 0.5)
    return optimizer


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def sharded(mesh) -> nn.Module:
    model = Toy()
    for block in model.blocks:  # the layers around them are the root's, which stays gathered after a forward pass
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def one_of_two(rank: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model = sharded(mesh)
    optimizer = toy_optimizer(model, kind)
    norms = toy_steps(model, optimizer, range(3), rank, 2)
    with torch.no_grad():
        model(torch.ones(1, 10))  # leaves gathered weights behind, which a swap must not use
    with ema.swapped(optimizer, model), torch.no_grad():
        averaged, seen = [whole(p) for p in model.parameters()], model(torch.ones(1, 10))
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    kept = [p.detach().clone() for p in model.parameters()]
    norms += toy_steps(model, optimizer, range(3, 5), rank, 2)
    other = sharded(mesh)  # goes on from the state of the first
    for p, value in zip(other.parameters(), kept, strict=True):
        p.data.copy_(value)
    again = toy_optimizer(other, kind)
    set_optimizer_state_dict(other, again, state)
    toy_steps(other, again, range(3, 5), rank, 2)
    same = all(torch.equal(whole(p), whole(q)) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    same_averages = all(torch.equal(whole(a), whole(b)) for (_, a), (_, b) in zip(ema.averages(optimizer), ema.averages(again), strict=True))
    found = {"norms": norms, "weights": [whole(p) for p in model.parameters()], "averaged": averaged, "seen": seen, "same": same and same_averages}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("kind", "within"), [("adamw", 1e-5), ("muon", 1e-3)])
def test_two_processes_with_shards_do_what_one_does_and_resume_to_the_same_bits(tmp_path, kind, within):
    torch.multiprocessing.spawn(one_of_two, (kind, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["norms"] == second["norms"] and torch.equal(first["seen"], second["seen"])
    assert first["same"] and second["same"]

    model, start = Toy(), list(Toy().parameters())
    optimizer = toy_optimizer(model, kind)
    norms = toy_steps(model, optimizer, range(3))
    with ema.swapped(optimizer, model), torch.no_grad():
        averaged, seen = weights(model), model(torch.ones(1, 10))
    norms += toy_steps(model, optimizer, range(3, 5))
    assert first["norms"] == pytest.approx(norms, rel=within)
    assert torch.allclose(first["seen"], seen, rtol=within)
    for mine, theirs in ((model.parameters(), first["weights"]), (averaged.values(), first["averaged"])):
        for begun, a, b in zip(start, mine, theirs, strict=True):
            assert (a - b).norm() < within * (a - begun).norm()


def test_a_model_of_which_only_matrices_may_train_needs_no_adamw():
    module = Small(config(optimizer="muon"))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("mlp" in name)
    before = weights(module)
    optimizer = make_optimizer(module, module.config)
    module.training_step(rows(0), 0).backward()
    optimizer.step()
    assert {name for name, value in weights(module).items() if not torch.equal(value, before[name])} == {name for name in before if "mlp" in name}
