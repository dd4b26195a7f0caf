"""Ray Serve: `python ray_server.py PORT NAME=FILE ...`.

One replica a model. The body goes as it is to the replica, which decodes and encodes. The
environment sets what Ray's own throughput mode sets, as far as it needs no HAProxy.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

os.environ.update(
    RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD="0",
    RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP="0",
    RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE="1000",
    RAY_SERVE_LOG_TO_STDERR="0",
    RAY_SERVE_USE_GRPC_BY_DEFAULT="1",
    RAY_USAGE_STATS_ENABLED="0",
)

import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.5}, max_ongoing_requests=64)
class OnnxDeployment:
    def __init__(self, name: str, path: str) -> None:
        from oip import OnnxModel

        self.onnx = OnnxModel(name, path)

    async def __call__(self, request: Request) -> Response:
        header = request.headers.get("inference-header-content-length")
        answer, length = self.onnx.answer(await request.body(), int(header) if header else None)
        if length is None:
            return Response(answer, media_type="application/json")
        headers = {"inference-header-content-length": str(length)}
        return Response(answer, headers=headers, media_type="application/octet-stream")


def main() -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    ray.init(
        _node_ip_address="127.0.0.1",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 * 1024 * 1024,
        logging_level=logging.WARNING,
        runtime_env={"env_vars": {"PYTHONPATH": here}},
    )
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config=quiet)
    for argument in sys.argv[2:]:
        name, path = argument.split("=", 1)
        application = OnnxDeployment.options(logging_config=quiet).bind(name, path)
        serve.run(application, name=name, route_prefix=f"/v2/models/{name}")
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
