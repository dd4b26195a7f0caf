"""Opening an ONNX Runtime session on a provider set, with proof of where its nodes went."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal_agent.runtimes.base import ProviderSet, RuntimeLoadError
from shoal_agent.runtimes.common import sentence, thread_count
from shoal_agent.runtimes.onnxcontext import ContextFolder, is_context
from shoal_agent.runtimes.providers import CANN, QNN, TENSORRT
from shoal_shared.placement import CPU_PROVIDERS, Placement, Proof, of_nodes

_ERROR, _FATAL = 3, 4
_OPTIMISATION = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_LIBRARIES = {QNN: "onnxruntime_qnn"}
"""Providers that come as plugins, and the package that knows where their library is."""


class SessionOpener:
    """Opens one model on one provider set. Errors are `RuntimeLoadError` throughout."""

    def __init__(self, ort: Any, options: Mapping[str, Any], provider_set: ProviderSet) -> None:
        self._ort = ort
        self._set = provider_set
        self._options = options
        self._names = [name for name, _ in provider_set.providers]

    def open(self, path: Path, compiled: Path | None) -> tuple[Any, Placement]:
        """A session, and where its nodes were assigned.

        `compiled` is a folder with compiled code, or an empty one for it; None keeps none. Where
        the provider `works_in_folder`, it must be the working directory, too. Raises `OSError`
        where code cannot be put there.
        """
        if compiled is not None and self._keeps_context:
            folder = ContextFolder(compiled)
            if folder.is_filled:
                session = self._create(folder.context, self._session_options())
                seen = self._nodes(session)
                return session, self._placement(seen and folder.nodes(seen), session)
            if not is_context(path):
                return self._compile(path, folder)
        session = self._create(path, self._session_options(), compiled)
        return session, self._placement(self._nodes(session), session)

    def has_context(self, compiled: Path | None) -> bool:
        """Whether a session can be opened without the model file."""
        return compiled is not None and self._keeps_context and ContextFolder(compiled).is_filled

    @property
    def works_in_folder(self) -> bool:
        """Whether compiled code is looked for in the working directory."""
        return CANN in self._names and self._set.compiles

    @property
    def _keeps_context(self) -> bool:
        return QNN in self._names and self._set.compiles

    def _compile(self, path: Path, folder: ContextFolder) -> tuple[Any, Placement]:
        # With more than basic optimisations a `Shape` is left to the CPU, where it fails.
        options = self._session_options("basic")
        nodes: dict[str, int] = {}
        with folder.filling(nodes) as context:
            options.add_session_config_entry("ep.context_enable", "1")
            options.add_session_config_entry("ep.context_file_path", str(context))
            options.add_session_config_entry("ep.context_embed_mode", "0")
            session = self._create(path, options)
            nodes |= self._nodes(session)
        return session, self._placement(nodes, session)

    def _create(self, path: Path, options: Any, compiled: Path | None = None) -> Any:
        providers = [
            (name, {**settings, **_cache(name, compiled)}) for name, settings in self._set.providers
        ]
        arguments: dict[str, Any] = {"sess_options": options}
        if QNN in self._names:
            self._add_plugin(options, providers)
        else:
            # Without the fallback, a provider that cannot be made raises, or is left out.
            arguments |= {"providers": providers, "enable_fallback": 0}
        model: str | bytes = os.fspath(path)
        if self.works_in_folder and compiled is not None:
            # Names of compiled files have a hash of the model's path in them, if it has one.
            model = path.read_bytes()
        try:
            session = self._ort.InferenceSession(model, **arguments)
        except Exception as error:
            # Its exceptions share no base class.
            raise RuntimeLoadError(
                f"ONNX Runtime {self._ort.__version__} cannot load the model: {sentence(error)}"
            ) from error
        session.disable_fallback()
        missing = [n for n in self._names if n not in session.get_providers()]
        if missing and missing[0] not in CPU_PROVIDERS:
            raise RuntimeLoadError(f"{missing[0]} could not be used")
        return session

    def _add_plugin(self, options: Any, providers: list[tuple[str, dict[str, str]]]) -> None:
        settings = dict(providers)[QNN]
        others = [name for name in self._names if name not in (QNN, *CPU_PROVIDERS)]
        if others:
            raise RuntimeLoadError(f"{QNN} cannot be used together with {others[0]}")
        devices = [d for d in self._ort.get_ep_devices() if d.ep_name == QNN]
        if not devices:
            module = _LIBRARIES[QNN]
            try:
                library = importlib.import_module(module).get_library_path()
                self._ort.register_execution_provider_library(QNN, library)
            except Exception as error:
                raise RuntimeLoadError(f"{QNN} cannot be loaded: {sentence(error)}") from error
            devices = [d for d in self._ort.get_ep_devices() if d.ep_name == QNN]
        if not devices:
            raise RuntimeLoadError(f"{QNN} found no device that it can use")
        options.add_provider_for_devices(_preferred(devices, settings), settings)

    def _session_options(self, level: str = "") -> Any:
        options = self._options
        threads = thread_count(options)
        level = options.get("graph_optimization", level or "all")
        if not isinstance(level, str) or level not in _OPTIMISATION:
            raise RuntimeLoadError(
                f"option 'graph_optimization' must be one of {', '.join(_OPTIMISATION)}"
            )
        spinning = options.get("spinning", False)
        if not isinstance(spinning, bool):
            raise RuntimeLoadError("option 'spinning' must be true or false")
        out = self._ort.SessionOptions()
        # What goes wrong on the CPU reaches the caller as an exception; why an accelerator's
        # library cannot be loaded is said in the log only.
        out.log_severity_level = _ERROR if self._set.accelerated else _FATAL
        out.intra_op_num_threads = threads
        out.graph_optimization_level = getattr(
            self._ort.GraphOptimizationLevel, _OPTIMISATION[level]
        )
        out.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        out.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return out

    def _nodes(self, session: Any) -> dict[str, int]:
        """Nodes by provider; empty where this version of ONNX Runtime does not tell."""
        tell = getattr(session, "get_provider_graph_assignment_info", None)
        if tell is None:
            return {}
        nodes: Counter[str] = Counter()
        for part in tell():
            nodes[part.ep_name] += len(part.get_nodes())
        return dict(nodes)

    def _placement(self, nodes: Mapping[str, int], session: Any) -> Placement:
        if nodes:
            return of_nodes(nodes)
        first = session.get_providers()[0]
        return Placement(accelerated=float(first not in CPU_PROVIDERS), proof=Proof.LISTED)


def _preferred(devices: list[Any], settings: Mapping[str, str]) -> list[Any]:
    """The device of the kind that the backend is for, else the first that is offered."""
    wanted = {"htp": "NPU", "gpu": "GPU"}.get(settings.get("backend_type", ""), "")
    fitting = [d for d in devices if str(d.device.type).endswith(wanted)] if wanted else []
    return (fitting or devices)[:1]


def _cache(name: str, compiled: Path | None) -> dict[str, str]:
    """Options of a provider that say where its compiled code is."""
    if name == TENSORRT and compiled is not None:
        return {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(compiled),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(compiled),
        }
    if name == CANN:
        # It would leave its code in whatever the working directory is; code that others vouched
        # for must not change.
        is_empty = compiled is not None and not any(compiled.iterdir())
        return {"dump_om_model": "1" if is_empty else "0"}
    return {}
