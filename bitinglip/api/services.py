"""Gives handlers the parts of the running server."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection
from starlette.types import Scope as HttpScope

from bitinglip.access.keys import KeyRing
from bitinglip.access.limits.admission import Admission
from bitinglip.access.limits.logins import FailedLogins
from bitinglip.access.limits.places import Places
from bitinglip.access.limits.token_rates import TokenRates
from bitinglip.access.links import Links
from bitinglip.access.shared.counts import SharedCounts
from bitinglip.access.tickets import Tickets
from bitinglip.access.tokens import Tokens
from bitinglip.access.usage.meter import Meter
from bitinglip.access.usage.rows import UsageRows
from bitinglip.api.request_context import RequestContext, context_of
from bitinglip.audit.log import AuditLog
from bitinglip.batches.batches import Batches
from bitinglip.db.database import Database
from bitinglip.db.write_behind import WriteBehind
from bitinglip.downloads.downloads import Downloads
from bitinglip.gateways.membership import Membership
from bitinglip.guard.guard import Guard
from bitinglip.home import Home
from bitinglip.redis.opening import SharedRedis
from bitinglip.results.cache.cache import ResponseCache
from bitinglip.results.files import Files
from bitinglip.results.message_pictures import MessagePictures
from bitinglip.results.uploads import Uploads
from bitinglip.scheduling.dispatch.dispatcher import Dispatcher
from bitinglip.scheduling.models.operations import Operations
from bitinglip.scheduling.models.recheck import Recheck
from bitinglip.scheduling.models.resume import Resume
from bitinglip.scheduling.placement.footprints import Footprints
from bitinglip.settings import Settings
from bitinglip.tasks.responses import Responses
from bitinglip.tasks.revocation import Revocation
from bitinglip.tasks.tasks import Tasks
from bitinglip.telemetry.health import Health
from bitinglip.telemetry.last_requests import LastRequests
from bitinglip.telemetry.metrics import Metrics
from bitinglip.telemetry.profile import Profiler
from bitinglip.telemetry.refusals import LimitRefusals
from bitinglip.telemetry.shared import Shared
from bitinglip.wire.job_context import KnownContexts
from model_store.store import ModelStore

if TYPE_CHECKING:
    from bitinglip.tracing.tracer import Tracer
    from bitinglip.upstreams.launcher import UpstreamLauncher
    from workers.nodes.cluster import Cluster


@dataclass(frozen=True)
class Services:
    """Holds all parts of the running server, at ``app.state.services`` once it is up."""

    settings: Settings
    home: Home
    store: ModelStore
    keys: KeyRing
    tokens: Tokens
    dispatcher: Dispatcher
    operations: Operations
    footprints: Footprints
    metrics: Metrics
    db: Database
    audit: AuditLog
    tasks: Tasks
    responses: Responses
    batches: Batches
    downloads: Downloads
    revocation: Revocation
    tickets: Tickets
    links: Links
    files: Files
    uploads: Uploads
    pictures: MessagePictures
    admission: Admission
    write_behind: WriteBehind
    meter: Meter
    token_rates: TokenRates
    usage: UsageRows
    logins: FailedLogins
    guard: Guard
    refusals: LimitRefusals
    resume: Resume
    cache: ResponseCache
    recheck: Recheck
    shared_redis: SharedRedis  #: what connects it with other gateways
    shared_counts: SharedCounts | None  #: of limits, with them
    health: Health = field(default_factory=Health)
    profiler: Profiler = field(default_factory=Profiler)
    membership: Membership | None = None  #: the place among servers that share the database
    contexts: KnownContexts = field(default_factory=KnownContexts)
    tracer: "Tracer | None" = None  #: where the settings ask for traces
    cluster: "Cluster | None" = None  #: where workers run on other machines
    upstreams: "UpstreamLauncher | None" = None  #: where other servers answer for models
    #: what looks after the store just now: models whose files are read, and "" for a clean-up
    caring: set[str] = field(default_factory=set)
    last_requests: LastRequests = field(default_factory=LastRequests)
    #: of the cluster, encoded, by what their watchers may see
    snapshots: Shared[dict[tuple[bool, tuple[str, ...] | None], bytes]] = field(
        default_factory=Shared
    )
    watches: Places = field(default_factory=Places)  #: streams of these snapshots


def services_in(scope: HttpScope) -> Services | None:
    """Return the services; None while the server is not up yet."""
    return context_of(scope).services


def services_of(request: HTTPConnection) -> Services:
    return serving(context_of(request.scope))


def serving(context: RequestContext) -> Services:
    services = context.services
    assert services is not None, "requests are refused until the server is up"
    return services
