"""Declares every setting: name, type, default and one line of help.

``config.yaml`` at the repository's root shows the same list; a test holds the two together, and
another that each setting is read. ``settings_loader`` reads the layers.
"""

from typing import Any, Literal

from pydantic import Field

from bitinglip.settings.audit import Audit
from bitinglip.settings.batches import Batches
from bitinglip.settings.cache import Cache
from bitinglip.settings.dashboard import Dashboard
from bitinglip.settings.database import Database
from bitinglip.settings.gateways import Gateways
from bitinglip.settings.guard import Guard
from bitinglip.settings.hub import Hub
from bitinglip.settings.limits import (
    ImageLimits,
    Limits,
    SpeechLimits,
    Tier,
    Tiers,
    TranscriptionLimits,
)
from bitinglip.settings.models import (
    Balancing,
    ImageModel,
    Model,
    SamplingDefaults,
    SpeechModel,
)
from bitinglip.settings.redis import Redis
from bitinglip.settings.sections import (
    Devices,
    FakeDevice,
    Files,
    KeyRotation,
    Logging,
    OpenAI,
    Queue,
    ResidencyRules,
    Section,
    Security,
    Server,
    Tasks,
    Usage,
)
from bitinglip.settings.store import Store
from bitinglip.settings.telemetry import Telemetry
from bitinglip.settings.workers import Workers

__all__ = [
    "Audit",
    "Balancing",
    "Batches",
    "Cache",
    "Dashboard",
    "Database",
    "Devices",
    "FakeDevice",
    "Guard",
    "ImageLimits",
    "ImageModel",
    "KeyRotation",
    "Logging",
    "Model",
    "Redis",
    "SamplingDefaults",
    "Section",
    "Security",
    "Server",
    "Settings",
    "SpeechLimits",
    "SpeechModel",
    "Store",
    "Telemetry",
    "Tier",
    "Tiers",
    "TranscriptionLimits",
    "as_plain",
]


#: Made once: each takes 0.1 ms, and scheduling asks for the settings of every model at each plan.
_DEFAULT_MODEL = Model()


class Settings(Section):
    server: Server = Server()
    security: Security = Security()
    workers: Workers = Workers()
    devices: Devices = Devices()
    queue: Queue = Queue()
    residency: ResidencyRules = ResidencyRules()
    limits: Limits = Limits()
    cache: Cache = Cache()
    guard: Guard = Guard()
    tasks: Tasks = Tasks()
    files: Files = Files()
    batches: Batches = Batches()
    audit: Audit = Audit()
    usage: Usage = Usage()
    openai: OpenAI = OpenAI()
    dashboard: Dashboard = Dashboard()
    hub: Hub = Hub()
    store: Store = Store()
    database: Database = Database()
    gateways: Gateways = Gateways()
    redis: Redis = Redis()
    logging: Logging = Logging()
    telemetry: Telemetry = Telemetry()
    demo: Literal["auto", "always", "never"] = Field(
        "auto",
        description="create demo models: auto (if the store is empty), always or never",
    )
    models: dict[str, Model] = Field({}, description="per-model settings, by model name")

    def model(self, name: str) -> Model:
        """Return the settings of a model; those of one that is not named are the defaults."""
        return self.models.get(name, _DEFAULT_MODEL)

    def keep_alive(self, name: str) -> float | None:
        """Return the seconds for which an unused model stays loaded; None: until its memory is
        needed."""
        own = self.model(name)
        kept = self.residency.keep_alive if own.keep_alive is None else own.keep_alive
        return None if own.pin or kept == "forever" else float(kept)


def as_plain(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON types, for ``config show``."""
    return settings.model_dump(mode="json")
