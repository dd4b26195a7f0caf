"""The agent put together: `build_agent` reads as its inventory."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Mapping

from shoal_agent.boards.base import Board
from shoal_agent.boards.detect import detect
from shoal_agent.boards.heat import HeatWatch
from shoal_agent.config import AgentConfig
from shoal_agent.connectivity.link import MqttLink
from shoal_agent.connectivity.session import DeviceSession
from shoal_agent.connectivity.transport import Transport
from shoal_agent.identity.device import Identity, new_boot_id
from shoal_agent.reconciler import Reconciler
from shoal_agent.runtimes.registry import RuntimeRegistry
from shoal_agent.service.lock import StateError, StateLock
from shoal_agent.service.logs import fields
from shoal_agent.service.notify import Notifier
from shoal_agent.service.status import AgentStatus, write_status
from shoal_agent.service.version import agent_version
from shoal_agent.serving.service import InferenceService
from shoal_agent.serving.stage import Stages
from shoal_agent.updates.compiled import SharedCompiledCode
from shoal_agent.updates.fetch import Artifacts, HttpArtifacts
from shoal_agent.updates.journal import FileJournal, Journal
from shoal_agent.updates.records import FileRecords
from shoal_agent.updates.reports import fit
from shoal_agent.updates.store import ArtifactStore
from shoal_shared.clock import Clock
from shoal_shared.messages import Capabilities, Reported, RoleGoal, Telemetry
from shoal_shared.topics import Topics

log = logging.getLogger("agent")

_DISK_CHANGE = 0.10
_START_PATIENCE_S = 30.0
_HEAT_INTERVAL_S = 0.5


def build_agent(
    config: AgentConfig,
    *,
    board: Board | None = None,
    registry: RuntimeRegistry | None = None,
    serving: InferenceService | None = None,
    transport: Transport | None = None,
    artifacts: Artifacts | None = None,
    journal: Journal | None = None,
    clock: Clock = time.monotonic,
    rng: random.Random | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Agent:
    """Build an agent; what is not given is the real thing."""
    rng = rng or random.Random()
    identity = Identity(config.device, new_boot_id(rng))
    board = board or detect()
    facts = board.facts
    registry = registry or RuntimeRegistry.discover(facts)
    store = ArtifactStore(config.state_dir / "artifacts", max_bytes=config.max_disk_bytes)
    host, port = config.broker_address
    client_id = f"{config.fleet}:{config.device}"
    return Agent(
        config,
        identity,
        board,
        registry,
        store,
        serving=serving
        or InferenceService(
            registry,
            clock=clock,
            compiled=SharedCompiledCode(
                config.state_dir / "compiled", config.server, config.device, rng=rng
            ),
            records=FileRecords(config.state_dir / "records.json"),
            target=facts.target,
            driver=" ".join(f"{k} {v}" for k, v in sorted(facts.toolkits.items())),
        ),
        transport=transport or MqttLink(host, port, client_id, rng=rng, clock=clock),
        artifacts=artifacts or HttpArtifacts(config.server, store, rng=rng),
        journal=journal or FileJournal(config.state_dir / "journal.json"),
        notifier=Notifier(environment),
        clock=clock,
        rng=rng,
    )


class Agent:
    """One device: serves what its goal says, and reports."""

    def __init__(
        self,
        config: AgentConfig,
        identity: Identity,
        board: Board,
        registry: RuntimeRegistry,
        store: ArtifactStore,
        *,
        serving: InferenceService,
        transport: Transport,
        artifacts: Artifacts,
        journal: Journal,
        notifier: Notifier,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._identity = identity
        self._board = board
        self._registry = registry
        self._store = store
        self._serving = serving
        self._notifier = notifier
        self._clock = clock
        self._reconciler = Reconciler(
            serving,
            artifacts,
            journal,
            clock=clock,
            rng=rng,
            on_change=self._changed,
            on_roles=self._take_roles,
        )
        self._session = DeviceSession(
            transport,
            config.fleet,
            identity,
            on_desired=self._reconciler.offer,
            infer=serving.handle,
            cancel=serving.cancel,
            on_connection=self._connection_changed,
            clock=clock,
        )
        self._stages = Stages(
            serving, self._session, Topics(config.fleet), identity.device, clock=clock
        )
        self._stop = asyncio.Event()
        self._was_ready = False
        self._change_due = False
        self._reported: Reported | None = None
        self._capabilities: Capabilities | None = None
        self._sequence = 0
        self._heat = HeatWatch(clock)

    def stop(self) -> None:
        """Have `run` end in an orderly way."""
        self._stop.set()

    async def run(self) -> None:
        """Run until `stop`, or cancelled. Raises `StateError` if the state folder is not usable."""
        lock = StateLock(self._config.state_dir)
        try:
            try:
                self._store.prepare()
            except OSError as error:
                raise StateError(f"the artifact store cannot be used: {error}") from None
            await self._work()
        finally:
            lock.release()

    async def _work(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started = self._clock()
        self._started_at = time.time()
        log.info(
            "agent starts",
            extra=fields(
                device=self._identity.device,
                boot_id=self._identity.boot_id,
                board=self._board.facts.description.model,
            ),
        )
        await self._reconciler.restore()
        self._changed()
        await self._session.start()
        loops = (
            self._reconciler.run(),
            self._observe(),
            self._watch_heat(),
            self._keep_manager_informed(),
        )
        tasks = [asyncio.create_task(loop) for loop in loops]
        stopping = asyncio.create_task(self._stop.wait())
        try:
            # None of the loops ends by itself; one that fails takes the agent down with it.
            done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._notifier.stopping()
            self._session.say_offline()
            for task in (stopping, *tasks):
                task.cancel()
            await asyncio.gather(stopping, *tasks, return_exceptions=True)
            await self._serving.close()
            await self._session.stop()
            log.info("agent stopped")

    def _connection_changed(self, connected: bool) -> None:
        if connected:
            self._publish_capabilities()
            self._reported = None
            if not self._was_ready:
                self._was_ready = True
                self._notifier.ready()
                took = self._clock() - self._started
                log.info("agent ready", extra=fields(after_s=f"{took:.3f}"))
        self._changed()

    def _take_roles(self, roles: tuple[RoleGoal, ...]) -> None:
        self._stages.assign(roles)

    def _changed(self) -> None:
        """Report soon; changes that come together are reported once."""
        if not self._change_due:
            self._change_due = True
            self._loop.call_soon(self._report)

    def _report(self) -> None:
        self._change_due = False
        reported = fit(
            Reported(
                goal=self._reconciler.goal,
                boot_id=self._identity.boot_id,
                models=self._reconciler.reports(),
            )
        )
        if reported != self._reported and self._session.publish_reported(reported):
            self._reported = reported
        self._write_status(reported)

    def _write_status(self, reported: Reported) -> None:
        status = AgentStatus(
            pid=os.getpid(),
            agent_version=agent_version(),
            device=self._identity.device,
            fleet=self._config.fleet,
            boot_id=self._identity.boot_id,
            board=self._board.facts.description.model,
            broker=self._config.broker,
            connected=self._session.connected,
            started_at=self._started_at,
            changed_at=time.time(),
            goal=reported.goal,
            models=reported.models,
            stages=self._stages.names,
        )
        try:
            write_status(self._config.state_dir, status)
        except OSError as error:
            log.warning("status not written", extra=fields(error=error.strerror))

    async def _observe(self) -> None:
        """Telemetry, and capabilities when they have changed."""
        while True:
            await asyncio.sleep(self._config.telemetry_interval_s)
            self._reconciler.refresh(self._serving.resident())
            if self._session.connected:
                try:
                    self._publish_observations()
                except Exception:
                    # A sensor that fails must not take down a device that serves.
                    log.exception("telemetry failed")

    async def _watch_heat(self) -> None:
        """Say at once when the board throttles or no longer does, and measure anew."""
        while True:
            await asyncio.sleep(_HEAT_INTERVAL_S)
            try:
                step = self._heat.see(self._board.is_throttled())
                if step.changed and self._session.connected:
                    self._publish_telemetry(self._store.room())
                if step.measure:
                    await self._serving.measure_anew()
                    self._reconciler.refresh(self._serving.resident())
            except Exception:
                # A sensor that fails must not take down a device that serves.
                log.exception("watching for heat failed")

    def _publish_observations(self) -> None:
        free = self._store.room()
        self._publish_telemetry(free)
        known = self._capabilities.disk_free_bytes if self._capabilities else 0
        if abs(free - known) > _DISK_CHANGE * known:
            self._publish_capabilities()

    def _publish_telemetry(self, disk_free: int) -> None:
        reading = self._board.read()
        self._session.publish_telemetry(
            Telemetry(
                seq=self._sequence,
                boot_id=self._identity.boot_id,
                uptime_s=round(self._clock() - self._started, 3),
                cpu_load=round(reading.cpu_load, 4),
                memory_used_bytes=reading.memory_used_bytes,
                disk_free_bytes=disk_free,
                temperature_c=reading.temperature_c,
                throttled=self._heat.throttled,
                power_w=reading.power_w,
                accelerator_load=reading.accelerator_load,
                accelerator_memory_used_bytes=reading.accelerator_memory_used_bytes,
                models=self._serving.stats(),
            )
        )
        self._sequence += 1

    def _publish_capabilities(self) -> None:
        facts = self._board.facts
        self._capabilities = Capabilities(
            agent_version=agent_version(),
            board=facts.description,
            cores=facts.cores,
            memory_bytes=facts.memory_bytes,
            disk_free_bytes=self._store.room(),
            accelerators=facts.accelerators,
            runtimes=self._registry.infos(),
            toolkits=dict(facts.toolkits),
            power_mode=facts.power_mode,
            labels=dict(self._config.labels),
            notes=facts.notes + self._registry.notes(),
        )
        self._session.publish_capabilities(self._capabilities)

    async def _keep_manager_informed(self) -> None:
        """Ask for patience until the first session; then feed the watchdog from this loop."""
        while not self._was_ready:
            # A device that boots without a network serves what it has, and must not be killed.
            self._notifier.starting("connecting to the broker", _START_PATIENCE_S)
            await asyncio.sleep(_START_PATIENCE_S / 3)
        period = self._notifier.watchdog_period_s
        while period is not None:
            self._notifier.alive()
            await asyncio.sleep(period)
        await self._stop.wait()
