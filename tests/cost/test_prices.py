"""Prices and what work costs by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.cost import bill, prices
from components.schema.config import BadInput
from components.schema.cost import Prices, Usage
from components.schema.recipe import Resources

ROOT = Path(__file__).parents[2]
TABLE = Prices(currency="EUR", source="by hand", per_gpu_hour={"A100": 1.0, "A100-SXM4-80GB": 2.0, "H200": 4.0}, per_cpu_hour=0.5, per_kwh=0.25)


def test_the_shipped_table_says_where_its_prices_are_from() -> None:
    table = prices.read(ROOT / prices.DEFAULT)
    assert table.source and table.of_gpu("NVIDIA H200") > table.of_gpu("NVIDIA A100-SXM4-80GB") > 0
    assert table.of_gpu("NVIDIA GeForce RTX 4090") == table.per_gpu_hour["other"]


def test_the_longest_part_of_a_devices_name_that_fits_counts() -> None:
    assert TABLE.of_gpu("NVIDIA A100-SXM4-80GB") == 2.0
    assert TABLE.of_gpu("NVIDIA A100-PCIE-40GB") == 1.0
    assert TABLE.of_gpu("NVIDIA L4") is None


def test_a_stage_on_gpus_pays_for_them_and_one_without_for_its_cores() -> None:
    work = Usage(seconds=3600, cpu_seconds=7200, kwh=2.0)
    assert work.amount(TABLE) == pytest.approx(2 * 0.5 + 2 * 0.25)
    on_gpus = work.model_copy(update={"gpu_seconds": {"NVIDIA H200": 7200.0, "NVIDIA A100-PCIE-40GB": 3600.0}})
    assert on_gpus.amount(TABLE) == pytest.approx(2 * 4.0 + 1.0 + 0.5)  # the machine around a GPU is in its price
    assert work.model_copy(update={"gpu_seconds": {"NVIDIA L4": 1.0}}).amount(TABLE) is None


def test_usages_add_up_and_of_memory_the_most_counts() -> None:
    one = Usage(seconds=1, cpu_seconds=2, gpu_seconds={"a": 1.0}, kwh=3, kwh_estimated=1, memory_mb=100)
    two = Usage(seconds=10, cpu_seconds=20, gpu_seconds={"a": 2.0, "b": 5.0}, kwh=30, memory_mb=70)
    assert one + two == Usage(seconds=11, cpu_seconds=22, gpu_seconds={"a": 3.0, "b": 5.0}, kwh=33, kwh_estimated=1, memory_mb=100)
    assert (one + two).energy == "partly estimated"
    assert one.scaled(2) == Usage(seconds=2, cpu_seconds=4, gpu_seconds={"a": 2.0}, kwh=6, kwh_estimated=2, memory_mb=100)


def test_a_bill_shows_only_columns_that_say_something() -> None:
    rows = bill.of_usages({"sft": Usage(seconds=3600, cpu_seconds=360, kwh=1, kwh_estimated=1)}, TABLE)
    assert bill.heads(rows) == {"hours": "hours", "cpu_hours": "CPU-h", "kwh": "kWh", "memory_mb": "peak MB", "amount": "EUR"}
    assert rows["total"]["amount"] == pytest.approx(0.3)
    assert bill.footnote(rows) == "Energy: estimated from busy time. Prices: by hand."
    assert "amount" not in bill.heads(bill.of_usages({"sft": Usage(seconds=1)}, None))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("currency: euros\nsource: here", "currency: String should match pattern"),
        ("currency: EUR", "source: Field required"),
        ("currency: EUR\nsource: here\nper_cpu_hour: -1", "per_cpu_hour: Input should be greater than or equal to 0 (given: -1)"),
        ("a: [", "is not readable YAML"),
    ],
)
def test_a_wrong_table_is_told_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "prices.yaml").write_text(text)
    with pytest.raises(BadInput) as error:
        prices.load(Resources(prices=str(tmp_path / "prices.yaml")))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_budget_without_prices_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert prices.load(Resources()) is None
    with pytest.raises(BadInput, match="could never be compared"):
        prices.load(Resources(budget=5))
    with pytest.raises(BadInput, match="cannot be read"):
        prices.load(Resources(prices="nowhere.yaml"))
