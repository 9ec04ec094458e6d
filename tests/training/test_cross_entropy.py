"""Cross-entropy through a linear layer, against torch's on whole logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy

from components.training import cross_entropy as cross_entropy_module
from components.training.cross_entropy import chunk_rows, linear_cross_entropy, linear_loss

N, D, V = 23, 8, 37


@pytest.fixture(autouse=True)
def _one_thread_one_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def layer(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(N, D, dtype=dtype, requires_grad=True), torch.randn(V, D, dtype=dtype, requires_grad=True), torch.randn(V, dtype=dtype, requires_grad=True)


def targets(ignored: int = 0) -> Tensor:
    found = torch.randint(0, V, (N,))
    found[torch.randperm(N)[:ignored]] = -100
    return found


def whole(hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Tensor, z_loss: float, smoothing: float) -> Tensor:
    """Each row's loss from whole logits, 0 where it does not count."""
    logits = hidden @ weight.t() + (0 if bias is None else bias)
    loss = cross_entropy(logits, wanted, label_smoothing=smoothing, reduction="none")
    return loss + z_loss * logits.logsumexp(1).square() * (wanted != -100)


@pytest.mark.parametrize("ignored", [0, 9])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (0.01, 0.0), (0.0, 0.1), (0.01, 0.1)])
def test_the_mean_and_its_gradients_are_those_of_whole_logits_whatever_comes_back(ignored: int, with_bias: bool, z_loss: float, smoothing: float) -> None:
    *weights, bias = layer()
    weights, wanted = [*weights, *([bias] if with_bias else [])], targets(ignored)
    bias = bias if with_bias else None
    mine = linear_cross_entropy(*weights[:2], wanted, bias=bias, z_loss=z_loss, label_smoothing=smoothing, chunk=5)
    torchs = whole(*weights[:2], bias, wanted, z_loss, smoothing).sum() / (wanted != -100).sum()
    torch.testing.assert_close(mine, torchs)
    for a, b in zip(torch.autograd.grad(-2.5 * mine, weights), torch.autograd.grad(-2.5 * torchs, weights), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kept", [0, cross_entropy_module.KEPT_LOGITS])
@pytest.mark.parametrize("ignored", [0, 9])
def test_without_reduction_every_row_has_its_loss_and_gradients_weigh_rows_as_they_come_back(ignored: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy_module, "KEPT_LOGITS", kept)
    hidden, weight, bias = layer()
    wanted, weigh = targets(ignored), torch.randn(N, dtype=torch.float64)
    mine = linear_cross_entropy(hidden, weight, wanted, bias=bias, z_loss=0.01, label_smoothing=0.1, chunk=4, reduction="none")
    torchs = whole(hidden, weight, bias, wanted, 0.01, 0.1)
    torch.testing.assert_close(mine, torchs)
    mine, torchs = ((losses * weigh).sum() for losses in (mine, torchs))
    for a, b in zip(torch.autograd.grad(mine, (hidden, weight, bias)), torch.autograd.grad(torchs, (hidden, weight, bias)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_agree_with_finite_differences(reduction: str) -> None:
    wanted = targets(3)
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_cross_entropy(h, w, wanted, bias=b, z_loss=0.02, label_smoothing=0.05, chunk=6, reduction=reduction), layer(), fast_mode=True
    )


def test_the_chunk_changes_nothing_but_rounding() -> None:
    hidden, weight, _ = layer(torch.float32)
    wanted = targets(2)
    results = [torch.autograd.grad(linear_cross_entropy(hidden, weight, wanted, chunk=chunk), (hidden, weight)) for chunk in (1, 7, 1000)]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_nats_are_the_plain_cross_entropy_and_rows_are_counted() -> None:
    hidden, weight, _ = layer()
    wanted = targets(9)
    found = linear_loss(hidden, weight, wanted, z_loss=0.5, label_smoothing=0.3)
    torch.testing.assert_close(found.nats, cross_entropy(hidden @ weight.t(), wanted))
    assert (int(found.count), found.nats.requires_grad, found.loss.requires_grad) == (N - 9, False, True)
    assert found.loss > found.nats


def test_means_weighed_by_their_counts_add_up_to_the_mean_of_all() -> None:
    hidden, weight, _ = layer()
    wanted = targets(9)
    parts = [linear_loss(hidden[rows], weight, wanted[rows]) for rows in (slice(0, 4), slice(4, N))]
    total = sum(part.loss * part.count for part in parts) / sum(part.count for part in parts)
    torch.testing.assert_close(total, cross_entropy(hidden @ weight.t(), wanted))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_rows_of_which_none_counts_give_zero_and_zero_gradients(reduction: str) -> None:
    hidden, weight, _ = layer()
    loss = linear_cross_entropy(hidden, weight, torch.full((N,), -100), reduction=reduction).sum()
    by_hidden, by_weight = torch.autograd.grad(loss, (hidden, weight))
    assert loss == 0 and not by_hidden.any() and not by_weight.any()


def test_huge_logits_neither_overflow_nor_vanish() -> None:
    hidden, weight, _ = layer(torch.float32)
    wanted = targets()
    mine, torchs = linear_cross_entropy(hidden * 1e4, weight, wanted), cross_entropy(hidden * 1e4 @ weight.t(), wanted)
    assert torchs.isfinite() and torchs > 1000
    torch.testing.assert_close(mine, torchs)
    for a, b in zip(torch.autograd.grad(mine, (hidden, weight)), torch.autograd.grad(torchs, (hidden, weight)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-4)  # gradients are of the order of 1e4


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_under_autocast_products_are_in_bf16_and_the_softmax_in_float32(reduction: str) -> None:
    hidden, weight, _ = layer(torch.float32)
    wanted = targets(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine = linear_cross_entropy(hidden, weight, wanted, chunk=5, reduction=reduction)
    logits = (hidden.bfloat16() @ weight.bfloat16().t()).float()
    torchs = cross_entropy(logits, wanted, reduction=reduction)
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, torchs, rtol=1e-5, atol=1e-5)
    for a, b in zip(torch.autograd.grad(mine.sum(), (hidden, weight)), torch.autograd.grad(torchs.sum(), (hidden, weight)), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(b.abs().max()))  # bf16 has 8 bits


def test_no_gradient_is_made_where_none_is_asked_for() -> None:
    hidden, weight, _ = layer()
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets()).requires_grad
    frozen = linear_cross_entropy(hidden, weight.detach(), targets())
    assert torch.autograd.grad(frozen, hidden)[0].shape == hidden.shape


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_is_kept_for_the_backward_pass_is_no_logits_where_they_are_many(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy_module, "KEPT_LOGITS", 512 * 512 - 1)
    rows, vocabulary = 512, 512
    hidden, weight = torch.randn(rows, D, requires_grad=True), torch.randn(vocabulary, D, requires_grad=True)
    wanted = torch.randint(0, vocabulary, (rows,))

    def kept(function: object) -> int:
        sizes: list[int] = []
        with saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            function()
        return max(sizes)

    assert kept(lambda: cross_entropy(hidden @ weight.t(), wanted)) >= rows * vocabulary  # the measure is able to see it
    assert kept(lambda: linear_cross_entropy(hidden, weight, wanted, chunk=64, reduction=reduction)) <= rows * D


def test_logits_that_stand_at_once_are_bounded_whatever_the_vocabulary() -> None:
    assert chunk_rows(4096) == 1024
    assert chunk_rows(1_000_000) == 128


def test_another_reduction_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'sum' is neither 'mean' nor 'none'"):
        linear_cross_entropy(torch.randn(2, D), torch.randn(V, D), torch.tensor([1, 2]), reduction="sum")
