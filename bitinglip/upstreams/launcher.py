"""Starts workers: processes for models that are here, stand-ins for those of other servers."""

from collections.abc import Mapping, Sequence

from bitinglip.settings.models import Model
from bitinglip.upstreams.answer_memory import AnswerMemory
from bitinglip.upstreams.client import UpstreamClient
from bitinglip.upstreams.http import open_http
from bitinglip.upstreams.servers import Servers, ServerView
from bitinglip.upstreams.worker import UpstreamWorker
from workers.launcher import Handle, Launcher, kept_by


class UpstreamLauncher:
    """Starts what a model's settings ask for."""

    def __init__(self, local: Launcher, models: Mapping[str, Model]) -> None:
        self._local = local
        self.kept = kept_by(local)
        self._models = {name: own for name, own in models.items() if own.upstream.url}
        self._http = open_http()
        self._memory = AnswerMemory()
        self._workers: dict[str, UpstreamWorker] = {}

    def launch(self, name: str, imports: Sequence[str], visible_devices: str | None) -> Handle:
        model = name.rpartition("/")[0]
        own = self._models.get(model)
        if own is None:
            return self._local.launch(name, imports, visible_devices)
        servers = Servers(own.upstream.url, own.balancing)
        client = UpstreamClient(self._http, self._memory, own.upstream, model, servers)
        self._workers[name] = worker = UpstreamWorker(client)
        return worker

    def views(self) -> list[ServerView]:
        """List the servers of the models that are loaded."""
        self._workers = {name: each for name, each in self._workers.items() if each.is_there}
        return [
            view
            for name, each in self._workers.items()
            for view in each.servers.views(name.rpartition("/")[0])
        ]

    async def close(self) -> None:
        """Close the connections; the workers have ended."""
        await self._http.close()
