"""The loader starts and stops the workers of replicas, and tells the model manager the outcome."""

import asyncio
import contextvars
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

import psutil
import structlog

from bitinglip.scheduling.models.facts import ResourceFacts
from bitinglip.scheduling.models.offload import USUAL_SIDE
from bitinglip.scheduling.models.state import ModelState, Replica
from bitinglip.scheduling.placement.eviction import EvictionRules
from bitinglip.scheduling.placement.ledger import Ledger
from bitinglip.scheduling.placement.split import is_even
from bitinglip.settings import Model, Settings, SpeechModel
from model_store.adapters import adapters_of, missing_base, weights_file
from model_store.errors import StoreError, UnknownModel
from model_store.manifest import ADAPTER, Manifest
from model_store.page_cache import PageCache, give_back
from model_store.store import ModelStore
from workers import protocol
from workers.codes import NOT_GRANTED
from workers.devices import DeviceUsage
from workers.devices.device import node_of
from workers.pool import StartFailed
from workers.worker import Worker

_LOOK_SECONDS = 0.1  #: between two looks at a card whose memory is to come back
_LOOKS = 10  #: after a load that ran out of memory
_LOOK_TIMEOUT = 2.0  #: seconds that a look may take

log = structlog.get_logger(__name__)


class Pool(Protocol):
    """Starts and stops worker processes: the pool, as far as models need it."""

    async def start(self, worker_id: str, spec: protocol.Load) -> Worker: ...
    async def stop(self, worker: Worker, cause: str = "stopped") -> None: ...
    def stuck(self, worker_id: str) -> Worker | None: ...
    def drain(self, worker: Worker) -> None: ...
    def forget_model(self, model: str) -> None: ...
    def warm_spare(self) -> None: ...
    @property
    def workers(self) -> list[Worker]: ...


class LoadListener(Protocol):
    """Decides what follows a load: the model manager."""

    def on_loaded(self, model_state: ModelState, replica: Replica, worker: Worker) -> None: ...
    def on_load_failed(
        self, model_state: ModelState, replica: Replica, why: StartFailed
    ) -> None: ...
    def ledger(self) -> Ledger:
        """Return what is reserved and free now."""
        ...

    def on_displaced(self, model_state: ModelState, replica: Replica) -> None:
        """Plan again for a load that has not begun: another program took its memory."""
        ...

    def refresh(self, sample: Mapping[str, DeviceUsage], pids: Mapping[str, int]) -> None:
        """Take over a sample of the devices."""
        ...

    def on_gone(self, model_state: ModelState, replica: Replica) -> None:
        """Take note that its process has ended and its memory is free."""
        ...

    def on_stuck(self, model_state: ModelState, replica: Replica, worker: Worker) -> None:
        """Take note that its process was killed and has not ended: it still holds its memory."""
        ...


class ReplicaLoader:
    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        pool: Pool,
        listener: LoadListener,
        facts: ResourceFacts,
        page_cache: PageCache | None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._pool = pool
        self._listener = listener
        self._facts = facts
        self._page_cache = page_cache
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, model_state: ModelState, replica: Replica, kind: str) -> "asyncio.Task[None]":
        """Load a replica onto its reserved devices, which are of this kind; return the task."""
        return self._spawn(self._load(model_state, replica, kind), f"load {replica.id}")

    def stop(
        self,
        model_state: ModelState,
        replica: Replica,
        cause: str,
        loading: "asyncio.Task[None] | None",
    ) -> "asyncio.Task[None]":
        """End a replica's worker, or its load; return the task, which ends with the process."""
        return self._spawn(self._stop(model_state, replica, cause, loading), f"stop {replica.id}")

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: "asyncio._CoroutineLike[None]", name: str) -> "asyncio.Task[None]":
        # In an empty context: what a worker does later belongs to no request.
        task = asyncio.create_task(work, name=name, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, model_state: ModelState, replica: Replica, kind: str) -> None:
        try:
            spec = self._spec(model_state.manifest, replica, kind)
            vocoder = self._settings.model(spec.model).speech.vocoder
            async with self._store.loading(filter(None, (spec.model, vocoder))):
                replica.storage_bytes = await self._read_first(spec.model)
                if kind == "cuda" and not await self._has_room(replica):
                    self._listener.on_displaced(model_state, replica)
                    return
                worker = await self._pool.start(replica.id, spec)
        except StartFailed as why:
            await self._failed(model_state, replica, kind, why)
        except StoreError as error:
            self._listener.on_load_failed(
                model_state, replica, StartFailed(error.code, error.message)
            )
        except Exception:  # the edge of the load's task: no exception may end it silently
            log.exception("no worker could be started", model=model_state.name)
            unknown = StartFailed("MODEL_LOAD_FAILED", "No worker could be started.")
            self._listener.on_load_failed(model_state, replica, unknown)
        else:
            _log_confinement(worker)
            self._facts.shared.load_ended(replica.model)
            self._listener.on_loaded(model_state, replica, worker)
            self._pool.warm_spare()
            await self._free_pages(replica)  # first: its pages are held for nothing now
            await self._store.record_use(replica.model, loaded=True)

    async def _failed(
        self, model_state: ModelState, replica: Replica, kind: str, why: StartFailed
    ) -> None:
        """Have a load planned again that failed for what a node lacks now, or tell its failure."""
        shared = self._facts.shared
        if why.code == NOT_GRANTED:
            log.info("a node granted no memory", worker=replica.id, cause=why.message)
            if not shared.refused(replica.model, replica.devices):
                self._listener.on_displaced(model_state, replica)
                return
            why = StartFailed("MODEL_LOAD_FAILED", why.message)
        is_full = why.code == "DISK_FULL"
        is_full = is_full and shared.note_full(replica.model, replica.devices, replica.began)
        if (stuck := self._pool.stuck(replica.id)) is not None:
            self._listener.on_stuck(model_state, replica, stuck)
        elif kind == "cuda" and why.code == "OUT_OF_MEMORY":
            await self._look_for_others(replica)
        elif is_full and self._goes_elsewhere(model_state):
            log.warning("a node has no room for files", worker=replica.id, cause=why.message)
            self._listener.on_displaced(model_state, replica)
            return
        shared.load_ended(replica.model)
        self._listener.on_load_failed(model_state, replica, why)

    def _goes_elsewhere(self, model_state: ModelState) -> bool:
        """Return True if a node can take a model whose disk has not failed it, in place of others
        if need be."""
        manifest, full_for = model_state.manifest, self._facts.shared.full_for
        reservations = self._listener.ledger().reservations
        found = self._facts.fit(manifest, reservations, EvictionRules()).placement
        return found is not None and not any(manifest.name in full_for(d) for d in found.devices)

    async def _free_pages(self, replica: Replica) -> None:
        """Let the files of a loaded model go: it is on its device now."""
        if self._page_cache is not None:
            self._page_cache.drop(replica.model)
        if any(device.unified for device in self._facts.devices if device.id in replica.devices):
            await asyncio.to_thread(give_back, self._store.weights_path(replica.model))

    async def _has_room(self, replica: Replica) -> bool:
        """Wait for memory that ended workers have not given back; False if others took it."""
        await self._look()
        while self._facts.use.awaits_memory(replica):
            await asyncio.sleep(_LOOK_SECONDS)
            await self._look()
        replica.other_bytes = {each: self._facts.other_bytes(each) for each in replica.devices}
        ledger = self._listener.ledger()
        there = {device.id for device in ledger.devices} & replica.devices.keys()
        return all(ledger.free(device) >= 0 for device in there)

    async def _look_for_others(self, replica: Replica) -> None:
        """Find out whether other programs took the memory that a load lacked, whose process is
        gone: its own memory comes back within these looks."""
        for _ in range(_LOOKS):
            await self._look()
            if not self._facts.use.foreign_use_rose(replica):
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        """Look at the devices now. Where that fails or takes long, the last look stands."""
        pids = {worker.id: worker.pid for worker in self._pool.workers}
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT):
                sample = await asyncio.to_thread(self._facts.sample, list(pids.values()))
        except (TimeoutError, OSError, psutil.Error) as error:
            log.warning("the devices could not be read before a load", cause=str(error))
        else:
            self._listener.refresh(sample, pids)

    async def _read_first(self, name: str) -> int:
        """Read the files of a model on slow storage in sequence, as far as the RAM allows; return
        the bytes that came from there.

        The load maps them, and would fetch them in small pieces in the order of its tensors.
        """
        cache = self._page_cache
        if cache is None or not cache.reads_first or name in cache.held:
            return 0
        try:
            return await asyncio.to_thread(cache.keep, name, self._store.weights_path(name))
        except asyncio.CancelledError:
            cache.drop(name)  # which ends the reading
            raise

    async def _stop(
        self,
        model_state: ModelState,
        replica: Replica,
        cause: str,
        loading: "asyncio.Task[None] | None",
    ) -> None:
        if loading is not None:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        if (worker := replica.worker) is not None:
            await self._pool.stop(worker, cause)
        if (stuck := self._pool.stuck(replica.id)) is not None:
            self._listener.on_stuck(model_state, replica, stuck)
        else:
            self._listener.on_gone(model_state, replica)
        if worker is not None:
            await self._store.record_use(replica.model)

    def await_end(self, model_state: ModelState, replica: Replica, worker: Worker) -> None:
        """Tell the end of a process that is stuck, whenever it comes."""

        async def wait() -> None:
            await worker.ended.wait()
            self._listener.on_gone(model_state, replica)

        self._spawn(wait(), f"end of {replica.id}")

    def keep_files(self, manifest: Manifest) -> None:
        """Keep the files in RAM of a model that was just evicted, or will be loaded soon."""
        cache = self._page_cache
        if cache is not None and manifest.name not in cache.held:
            folder = self._store.weights_path(manifest.name)

            async def keep() -> None:
                await asyncio.to_thread(cache.keep, manifest.name, folder)

            self._spawn(keep(), f"keep {manifest.name}")

    def _speech_options(self, own: SpeechModel) -> protocol.SpeechOptions:
        try:
            vocoder = str(self._store.path(own.vocoder)) if own.vocoder else None
        except UnknownModel as error:
            raise StartFailed(
                "MODEL_LOAD_FAILED",
                f"The vocoder '{own.vocoder}', which this model's setting speech.vocoder names, is "
                "not in the store: pull it, or correct the setting.",
            ) from error
        return protocol.SpeechOptions(vocoder=vocoder, voices=own.voices)

    def _lent(self, manifest: Manifest) -> str:
        """Return the folder in which a text model's worker finds LoRAs that come later, too."""
        if manifest.kind == "text" and manifest.adapter_of is None:
            with suppress(OSError):  # a store that may only be read
                return str(self._store.adapter_links.of_base(manifest.name))
        return ""

    def _loras(self, manifest: Manifest) -> dict[str, str]:
        """Return the LoRA files of an image model by name: those that its settings name, itself if
        it is one, else those in the store that were made for it."""
        own = self._settings.model(manifest.name).image.loras
        if manifest.kind != "image":
            return own
        there = self._store.listing.all()
        found = [manifest] if manifest.adapter_of else adapters_of(manifest.name, there)
        return {
            each.name: str(self._store.path(each.name) / weights_file(each)) for each in found
        } | own

    def _spec(self, manifest: Manifest, replica: Replica, kind: str) -> protocol.Load:
        if manifest.kind == ADAPTER:
            raise StartFailed("MODEL_LOAD_FAILED", missing_base(manifest))
        own = self._settings.model(manifest.name)
        _check_text_only(own, own.engine or manifest.engine, manifest.name)
        workers = self._settings.workers
        load_config = self._facts.load_config(manifest, kind)
        side = manifest.image_side or USUAL_SIDE
        lent = self._lent(manifest)
        return protocol.Load(
            model=manifest.name,
            engine=own.engine or manifest.engine,
            path=str(self._store.weights_path(manifest.name)),
            adapter=str(self._store.path(manifest.name)) if manifest.adapter_of else None,
            node=node_of(next(iter(replica.devices), "")),
            reserves=dict(replica.devices),
            ram=replica.ram_bytes,
            device="cuda" if kind == "cuda" else "cpu",
            visible_devices=self._facts.visible_devices(replica) if kind == "cuda" else "",
            device_weights=self._facts.device_weights(manifest, replica) if kind == "cuda" else (),
            context_bytes=self._facts.context_bytes(replica) if kind == "cuda" else None,
            even_split=is_even(replica.devices.values()),
            dtype=self._facts.dtype_of_load(replica),
            quantization=own.quantization,
            max_context=own.max_context,
            kv_cache_bytes=load_config.kv_cache_bytes,
            max_batch=own.max_batch,
            threads=workers.threads,
            warmup=own.warmup,
            heartbeat_seconds=min(1.0, workers.heartbeat_timeout / 4),
            image=protocol.ImageOptions(
                offload="none" if kind == "fake" else load_config.offload,
                compile=own.image.compile,
                step_cache=own.image.step_cache,
                loras=self._loras(manifest),
                own_lora=manifest.name if manifest.adapter_of else None,
                width=own.image.width or side,
                height=own.image.height or side,
            ),
            speech=self._speech_options(own.speech),
            text=protocol.TextOptions(
                response_template=own.text.response_template,
                attention=own.text.attention,
                overlap=own.text.overlap,
                graphs=own.text.graphs,
                kv_cache_dtype=own.text.kv_cache_dtype,
                speculation=own.text.speculation,
                draft_tokens=own.text.draft_tokens,
                prefix_ram_bytes=own.text.prefix_ram_bytes,
                max_loras=own.text.max_loras if lent else 0,
                max_lora_rank=own.text.max_lora_rank,
                lora_folder=lent,
                source_language=own.text.source_language,
                target_language=own.text.target_language,
            ),
            fake=protocol.FakeOptions(**own.fake.model_dump()),
        )


def _check_text_only(own: Model, engine: str, name: str) -> None:
    """Raise StartFailed for a setting that the engine of a model has no use for."""
    if own.quantization is not None and engine != "text":
        raise StartFailed(
            "MODEL_LOAD_FAILED",
            f"models.{name}.quantization is {own.quantization}, and the engine {engine} quantises "
            "no weights: only text models are quantised.",
        )


def _log_confinement(worker: Worker) -> None:
    """Say what confines a worker that has loaded, and what does not."""
    if worker.ready is not None:
        confined = worker.ready.confined
        log.info(
            "worker confined",
            worker=worker.id,
            confined=", ".join(confined.measures) or "not at all",
            missing=list(confined.missing),
        )
