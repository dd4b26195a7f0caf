"""KServe's model server: `python kserve_server.py PORT NAME=FILE ...`.

KServe decodes and encodes; the model runs on the event loop, which was faster here than a thread.
"""

from __future__ import annotations

import logging
import sys
import uuid
from typing import Any

from kserve import InferRequest, InferResponse, Model, ModelServer
from kserve.protocol.infer_type import InferOutput
from oip import OnnxModel


class KServeModel(Model):
    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self.onnx = OnnxModel(name, path)
        self.ready = True

    async def predict(
        self, payload: InferRequest, headers: Any = None, response_headers: Any = None
    ) -> InferResponse:
        names = self.onnx.outputs
        arrays = self.onnx.session.run(names, {i.name: i.as_numpy() for i in payload.inputs})
        binary = bool(payload.use_binary_outputs)
        outputs = []
        for name, array in zip(names, arrays, strict=True):
            output = InferOutput(name, list(array.shape), "FP32")
            output.set_data_from_numpy(array, binary_data=binary)
            outputs.append(output)
        return InferResponse(
            response_id=payload.id or uuid.uuid4().hex,
            model_name=self.name,
            infer_outputs=outputs,
            use_binary_outputs=binary,
            requested_outputs=payload.request_outputs,
        )


def main() -> None:
    # Handlers that are there already keep KServe from logging each request and its timing.
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("uvicorn.access").propagate = False
    port = int(sys.argv[1])
    models = [KServeModel(*argument.split("=", 1)) for argument in sys.argv[2:]]
    server = ModelServer(
        http_port=port,
        workers=1,
        enable_grpc=False,
        enable_docs_url=False,
        enable_latency_logging=False,
        access_log_format="",
        event_loop="uvloop",
    )
    server.start(models)


if __name__ == "__main__":
    main()
