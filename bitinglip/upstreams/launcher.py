"""Starts workers: processes for models that are here, stand-ins for those of other servers."""

from collections.abc import Mapping, Sequence

from bitinglip.settings.models import Model
from bitinglip.upstreams.client import UpstreamClient
from bitinglip.upstreams.http import open_http
from bitinglip.upstreams.servers import Servers
from bitinglip.upstreams.worker import UpstreamWorker
from workers.launcher import Handle, Launcher, kept_by


class UpstreamLauncher:
    """Starts what a model's settings ask for."""

    def __init__(self, local: Launcher, models: Mapping[str, Model]) -> None:
        self._local = local
        self.kept = kept_by(local)
        self._models = {name: own for name, own in models.items() if own.upstream.url}
        self._http = open_http()

    def launch(self, name: str, imports: Sequence[str], visible_devices: str | None) -> Handle:
        model = name.rpartition("/")[0]
        own = self._models.get(model)
        if own is None:
            return self._local.launch(name, imports, visible_devices)
        servers = Servers(own.upstream.url, own.balancing)
        return UpstreamWorker(UpstreamClient(self._http, own.upstream, model, servers))

    async def close(self) -> None:
        """Close the connections; the workers have ended."""
        await self._http.close()
