"""One Azure ML online endpoint on its way to what is wanted of it.

Azure works on a change for minutes, one at a time for each endpoint and deployment. A call begins
the first one, so that its error is the caller's; a task then goes on, a step at a time, until all
is as wanted, and keeps the sentence of what went wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import ParamSpec, Protocol, TypeVar

from shoal_controlplane.offload.azureml import plan
from shoal_controlplane.offload.azureml.plan import Deployed, Goal, Observed, Step
from shoal_controlplane.offload.target import CloudModel, Fault, Health, TargetError

ASK_S = 30.0
UPLOAD_S = 3600.0
LONGEST_PAUSE_S = 60.0
MAX_FAILURES = 20
KEY_PAUSE_S = 5.0

_FINAL = frozenset({Fault.CREDENTIALS, Fault.QUOTA, Fault.UNSUPPORTED})

_P = ParamSpec("_P")
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Azure(Protocol):
    """What is asked of a workspace, in threads; see `session.Session`."""

    def observe(self, endpoint: str, model: str) -> Observed: ...
    def create_endpoint(self, endpoint: str, model: str) -> None: ...
    def delete_endpoint(self, endpoint: str) -> None: ...
    def set_traffic(self, endpoint: str, traffic: dict[str, int]) -> None: ...
    def create_deployment(
        self, endpoint: str, deployment: str, model: CloudModel, instances: int
    ) -> None: ...
    def scale_deployment(self, endpoint: str, deployment: str, instances: int) -> None: ...
    def delete_deployment(self, endpoint: str, deployment: str) -> None: ...
    def failure(self, name: str) -> str: ...
    def key(self, endpoint: str) -> str: ...
    def is_registered(self, asset: str, digest: str) -> bool: ...
    def register(self, asset: str, model: CloudModel) -> None: ...
    def forget(self, asset: str, digest: str) -> None: ...


class Endpoint:
    """The endpoint for the model `model`, named `name` in Azure. Raises `TargetError`."""

    def __init__(
        self,
        name: str,
        model: str,
        azure: Azure,
        poll_s: float,
        calls: Executor,
        transfers: Executor,
    ) -> None:
        self.name, self.model, self.models = name, model, dict[str, CloudModel]()
        self._azure, self._poll_s = azure, poll_s
        self._calls, self._transfers = calls, transfers
        self._goals: dict[str, Goal] = {}
        self._gone: set[str] = set()
        self._leftovers: set[str] = set()
        self._seen = Observed()
        self._served: dict[str, int] = {}
        self._trouble = ""
        self._key, self._key_asked = "", float("-inf")
        self._key_lock = asyncio.Lock()
        # Held while something is seen and decided on, never while a change is waited for.
        self._lock = asyncio.Lock()
        self._driver: asyncio.Task[None] | None = None
        self._uploads: dict[str, asyncio.Task[None]] = {}

    async def want(self, model: CloudModel) -> None:
        """Have this version with these bytes, with as many replicas as it has."""
        version = model.version
        async with within(ASK_S), self._lock:
            await self.look()
            there = await call(self._calls, self._azure.is_registered, self.name, model.digest)
            known = self._goals.get(version)
            before = {d.digest for d in self._seen.of(version)}
            if known is not None:
                before.add(known.digest)
            self._leftovers |= before - {model.digest}
            self.models[version] = model
            self._goals[version] = Goal(
                model.digest, None if known is None else known.replicas, there
            )
            self._gone.discard(version)
        await self._begin()

    async def scale(self, version: str, replicas: int) -> bool:
        """Have so many replicas; False where the version is not wanted at all."""
        goal = self._goals.get(version)
        if goal is None:
            await self.look()
            return False
        self._goals[version] = replace(goal, replicas=max(0, replicas))
        await self._begin()
        return True

    async def drop(self, version: str) -> None:
        """Have nothing of this version; the last one takes the endpoint with it."""
        # With the lock: `_tidy` forgets what is left over when it has taken all of it away.
        async with within(ASK_S), self._lock:
            await self.look()
            goal, own = self._goals.pop(version, None), self._seen.of(version)
            if goal is None and not own and version not in self._gone:
                return
            self.models.pop(version, None)
            self._gone.add(version)
            self._leftovers.update(d.digest for d in own)
            if goal is not None:
                self._leftovers.add(goal.digest)
        await self._begin()

    async def look(self) -> None:
        """See what is there."""
        seen = await call(self._calls, self._azure.observe, self.name, self.model)
        ready = {d.name: d.instances for d in seen.deployments if d.state == plan.SUCCEEDED}
        names = {d.name for d in seen.deployments}
        self._served = {n: c for n, c in {**self._served, **ready}.items() if n in names}
        self._seen = seen

    def serving(self, version: str) -> Deployed | None:
        """The deployment that answered for a version when it was last looked at."""
        goal = self._goals.get(version)
        own = self._seen.of(version)
        if goal is None and not own:
            return None
        return plan.serving(self._seen, version, goal.digest if goal else own[0].digest)

    def health(self, version: str) -> Health | None:
        """How a version fared when it was last looked at, None where there is nothing of it."""
        goal, own = self._goals.get(version), self._seen.of(version)
        if goal is None and not own:
            return None
        there = max((d.instances for d in own if d.state != "Deleting"), default=0)
        wanted = there if goal is None or goal.replicas is None else goal.replicas
        deployed = self.serving(version)
        ready = 0 if deployed is None else self._served.get(deployed.name, 1)
        reason = self._trouble
        if not reason and ready < wanted:
            reason = self._progress(own)
        return Health(ready, wanted, reason)

    @property
    def url(self) -> str:
        """Where Triton answers for the model: the scoring address is its root, while other servers
        have theirs at `/score`."""
        base = self._seen.scoring.removesuffix("/").removesuffix("/score")
        if not base.startswith("https://"):
            raise TargetError(Fault.BROKEN, f"endpoint {self.name} has no address with https")
        return f"{base}/v2/models/{self.model}"

    async def key(self, used: str = "") -> str:
        """A key to score with; another one than `used` if Azure has one. It is asked for once for
        all that wait, and not again at once where it was the same."""
        if self._key != used:
            return self._key
        async with self._key_lock:
            now = asyncio.get_running_loop().time()
            if self._key == used and now - self._key_asked >= KEY_PAUSE_S:
                self._key = await call(self._calls, self._azure.key, self.name)
                self._key_asked = now if self._key == used else float("-inf")
            return self._key

    async def close(self) -> None:
        """End its tasks; changes that Azure works on go on."""
        tasks = [task for task in (self._driver, *self._uploads.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self) -> None:
        async with within(ASK_S), self._lock:
            if self._driver is not None:
                # It holds no lock, so it is between two steps.
                self._driver.cancel()
            self._trouble, goes_on = "", True
            try:
                step = await self._advance(retry=True)
                goes_on = step is not None or bool(self._leftovers)
            except TargetError as error:
                self._trouble, goes_on = str(error), error.fault not in _FINAL
                raise
            finally:
                # Also where the caller did not wait for the end.
                if goes_on:
                    self._driver = asyncio.create_task(self._drive())

    async def _drive(self) -> None:
        failures, pause = 0, self._poll_s
        while True:
            await asyncio.sleep(pause)
            try:
                async with self._lock:
                    step = await self._advance()
                    if step is None and await self._tidy():
                        self._trouble = ""
                        return
                if isinstance(step, plan.Stuck):
                    self._trouble = await self._why(step.name)
                    return
                pause = self._poll_s
                if not isinstance(step, plan.Wait):
                    failures = 0
            except TargetError as error:
                self._trouble = str(error)
                failures += 1
                if error.fault in _FINAL or failures > MAX_FAILURES:
                    _log.warning("gave up on endpoint %s: %s", self.name, error)
                    return
                slower = min(self._poll_s * 2.0**failures, LONGEST_PAUSE_S)
                pause = max(slower, error.retry_after_s or 0.0)

    async def _advance(self, retry: bool = False) -> Step | None:
        """See what is there and ask for the next change, which is returned."""
        await self.look()
        self._upload_what_lacks(retry)
        step = plan.next_step(self._seen, self._goals, self._gone, retry)
        await self._do(step)
        if not self._key and any(self.serving(version) for version in self._goals):
            await self.key()
        return step

    async def _do(self, step: Step | None) -> None:
        azure, name, calls = self._azure, self.name, self._calls
        match step:
            case plan.CreateEndpoint():
                await call(calls, azure.create_endpoint, name, self.model)
            case plan.DeleteEndpoint():
                self._key = ""
                await call(calls, azure.delete_endpoint, name)
            case plan.SetTraffic(traffic):
                await call(calls, azure.set_traffic, name, dict(traffic))
            case plan.DeleteDeployment(deployment):
                await call(calls, azure.delete_deployment, name, deployment)
            case plan.PutDeployment(deployment, version, instances, new=True):
                model = self.models[version]
                await call(calls, azure.create_deployment, name, deployment, model, instances)
            case plan.PutDeployment(deployment, _, instances):
                await call(calls, azure.scale_deployment, name, deployment, instances)

    def _upload_what_lacks(self, retry: bool) -> None:
        """Begin uploads, and take note of those that ended. Raises what one failed with, or with
        `retry` begins it anew."""
        for version, goal in self._goals.items():
            if goal.registered:
                continue
            task = self._uploads.get(goal.digest)
            if task is not None and task.done():
                del self._uploads[goal.digest]
                if task.exception() is None:
                    self._goals[version] = replace(goal, registered=True)
                    continue
                if not retry:
                    task.result()
                task = None
            if task is None:
                upload = self._upload(self.models[version])
                self._uploads[goal.digest] = asyncio.create_task(upload)

    async def _upload(self, model: CloudModel) -> None:
        await call(self._transfers, self._azure.register, self.name, model, limit_s=UPLOAD_S)

    async def _tidy(self) -> bool:
        """Take away the registered models that nothing needs any more; False where one is still
        being uploaded."""
        used = {goal.digest for goal in self._goals.values()}
        used.update(d.digest for d in self._seen.deployments)
        for digest in sorted(self._leftovers - used):
            upload = self._uploads.get(digest)
            if upload is not None and not upload.done():
                return False
            self._uploads.pop(digest, None)
            await call(self._calls, self._azure.forget, self.name, digest)
            self._leftovers.discard(digest)
        self._leftovers.clear()
        self._gone.clear()
        return True

    async def _why(self, deployment: str) -> str:
        name = f"{self.name}/{deployment}" if deployment else self.name
        what = f"deployment {deployment}" if deployment else f"endpoint {self.name}"
        said = await call(self._calls, self._azure.failure, name)
        return f"Azure could not provision {what}: {said or 'its log in the workspace says why'}"

    def _progress(self, own: list[Deployed]) -> str:
        """What a version waits for."""
        if self._seen.state != plan.SUCCEEDED:
            return f"endpoint {self.name} is {self._seen.state.lower() or 'not there yet'}"
        waiting = next((d for d in own if d.state != plan.SUCCEEDED), None)
        if waiting is not None:
            return f"deployment {waiting.name} is {waiting.state.lower()}"
        return (
            "the model is on its way to Azure" if self._uploads else "Azure is asked for instances"
        )


async def call(
    executor: Executor,
    func: Callable[..., _T],
    *args: object,
    limit_s: float = ASK_S,
) -> _T:
    """`func` in a thread, waited for so long and no longer."""
    async with within(limit_s):
        return await asyncio.get_running_loop().run_in_executor(executor, func, *args)


class within:  # noqa: N801
    """As `asyncio.timeout`, but a `TargetError` at the end."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limit = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()

    async def __aexit__(self, *error: object) -> None:
        try:
            await self._limit.__aexit__(*error)  # type: ignore[arg-type]
        except TimeoutError:
            raise TargetError(
                Fault.TIMEOUT, f"Azure does not answer within {self._seconds:.1f} s"
            ) from None
