"""What work uses (time, energy, memory) and what that costs: the figures and the price table, without the measuring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat

from components.schema.config import Config

JOULES_PER_KWH = 3.6e6
SECONDS_PER_HOUR = 3600.0
OTHER = "other"


class Prices(Config):
    """What an hour of a device and a kilowatt-hour cost, and where these prices are from."""

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    """ISO 4217 code, such as EUR or USD; every amount and every budget is in it."""
    source: Annotated[str, Field(min_length=3)]
    """Where the prices are from, and of when; it stands beside every sum."""
    per_gpu_hour: dict[str, NonNegativeFloat] = {}
    """Price of one GPU for an hour with the machine around it, by a part of the device's name; the longest part that fits counts, `other` is any other."""
    per_cpu_hour: NonNegativeFloat = 0.0
    """Price of one core busy for an hour, of stages that use no GPU."""
    per_kwh: NonNegativeFloat = 0.0
    """Price of a kilowatt-hour; 0 where the hours include it, as they do in a rented machine."""
    watts_per_core: PositiveFloat = 10.0
    """Power of one busy core with its share of the machine, where nothing measures it; energy found so is marked as estimated."""
    watts_per_gpu: PositiveFloat = 400.0
    """Power of one GPU where its driver does not tell; energy found so is marked as estimated."""

    def of_gpu(self, name: str) -> float | None:
        """Price of an hour of a GPU; None where the table has no line for it."""
        fitting = [part for part in self.per_gpu_hour if part != OTHER and part.lower() in name.lower()]
        return self.per_gpu_hour[max(fitting, key=len)] if fitting else self.per_gpu_hour.get(OTHER)


class Usage(Config):
    """What a piece of work used. Two usages add up: times and energy are summed, of memory the most counts."""

    seconds: NonNegativeFloat = 0.0
    """Wall clock."""
    cpu_seconds: NonNegativeFloat = 0.0
    """Seconds that cores were busy, in all processes."""
    gpu_seconds: dict[str, NonNegativeFloat] = {}
    """Seconds that GPUs were held, by the device's name."""
    kwh: NonNegativeFloat = 0.0
    """Energy, measured and estimated together."""
    kwh_estimated: NonNegativeFloat = 0.0
    """The part of it that no meter showed: time multiplied by a stated power."""
    memory_mb: NonNegativeFloat = 0.0
    """The most host memory that all processes held together."""
    gpu_memory_mb: NonNegativeFloat = 0.0
    """The most memory in use on the GPUs together."""

    def __add__(self, other: Usage) -> Usage:
        gpus = {name: self.gpu_seconds.get(name, 0.0) + other.gpu_seconds.get(name, 0.0) for name in (*self.gpu_seconds, *other.gpu_seconds)}
        summed = {name: getattr(self, name) + getattr(other, name) for name in ("seconds", "cpu_seconds", "kwh", "kwh_estimated")}
        most = {name: max(getattr(self, name), getattr(other, name)) for name in ("memory_mb", "gpu_memory_mb")}
        return Usage(gpu_seconds=gpus, **summed, **most)

    def scaled(self, factor: float) -> Usage:
        """The same work `factor` times over; memory stays."""
        gpus = {name: seconds * factor for name, seconds in self.gpu_seconds.items()}
        return self.model_copy(update={"gpu_seconds": gpus, **{name: getattr(self, name) * factor for name in ("seconds", "cpu_seconds", "kwh", "kwh_estimated")}})

    @property
    def cpu_hours(self) -> float:
        return self.cpu_seconds / SECONDS_PER_HOUR

    @property
    def gpu_hours(self) -> float:
        return sum(self.gpu_seconds.values()) / SECONDS_PER_HOUR

    @property
    def energy(self) -> str:
        """How its energy is known: measured, estimated, or partly estimated."""
        if not self.kwh_estimated:
            return "measured"
        return "estimated" if self.kwh_estimated >= 0.999 * self.kwh else "partly estimated"

    def amount(self, prices: Prices) -> float | None:
        """What it costs; None where the table has no price for a GPU that was used."""
        energy = self.kwh * prices.per_kwh
        if not self.gpu_seconds:
            return self.cpu_hours * prices.per_cpu_hour + energy
        hours = [(prices.of_gpu(name), seconds / SECONDS_PER_HOUR) for name, seconds in self.gpu_seconds.items()]
        return None if any(price is None for price, _ in hours) else sum(price * spent for price, spent in hours if price is not None) + energy


def total(parts: Mapping[str, Usage]) -> Usage:
    """All of them together."""
    return sum(parts.values(), Usage())


def of_record(execution: Mapping[str, Any]) -> dict[str, Usage]:
    """What a stage used by the run that used it, as its record says; empty for a record from before costs were kept."""
    return {run: Usage.model_validate(used) for run, used in execution.get("cost", {}).get("by_run", {}).items()}
