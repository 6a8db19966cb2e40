"""Shows devices as gauges, read at each scrape."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """Describes a device as it was at the last look: bytes, and a share of 0..1;
    None is not known."""

    device: str
    total: int
    used: int | None  #: by all programs
    reserved: int  #: by our own books
    utilisation: float | None
    power_w: float | None = None
    temperature_c: float | None = None
    slowed_by: tuple[str, ...] = ()  #: what keeps its clocks down
    elsewhere: int | None = None  #: reserved by other gateways; of a device of a cluster


def device_gauges(samples: Iterable[DeviceSample]) -> Iterator[GaugeMetricFamily]:
    memory = GaugeMetricFamily(
        "bitinglip_device_memory_bytes",
        "Memory of a device: total, used by all programs, reserved for our models",
        labels=["device", "kind"],
    )
    busy = GaugeMetricFamily(
        "bitinglip_device_utilisation_ratio", "How busy a device is, 0 to 1", labels=["device"]
    )
    power = GaugeMetricFamily(
        "bitinglip_device_power_watts", "Power that a device draws", labels=["device"]
    )
    heat = GaugeMetricFamily(
        "bitinglip_device_temperature_celsius", "Temperature of a device", labels=["device"]
    )
    slowed = GaugeMetricFamily(
        "bitinglip_device_slowed", "1 while this keeps a device slow", labels=["device", "by"]
    )
    elsewhere = GaugeMetricFamily(
        "bitinglip_device_elsewhere_bytes",
        "Memory of a cluster's device that other gateways have reserved",
        labels=["device"],
    )
    for sample in samples:
        memory.add_metric([sample.device, "total"], sample.total)
        memory.add_metric([sample.device, "reserved"], sample.reserved)
        if sample.used is not None:
            memory.add_metric([sample.device, "used"], sample.used)
        if sample.utilisation is not None:
            busy.add_metric([sample.device], sample.utilisation)
        if sample.power_w is not None:
            power.add_metric([sample.device], sample.power_w)
        if sample.temperature_c is not None:
            heat.add_metric([sample.device], sample.temperature_c)
        if sample.elsewhere is not None:
            elsewhere.add_metric([sample.device], sample.elsewhere)
        for reason in sample.slowed_by:
            slowed.add_metric([sample.device, reason], 1)
    yield from (memory, busy, power, heat, slowed, elsewhere)
