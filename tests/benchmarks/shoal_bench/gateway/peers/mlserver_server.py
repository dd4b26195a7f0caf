"""MLServer: `python mlserver_server.py PORT NAME=FILE ...`.

MLServer decodes and encodes, in JSON only: it does not speak the binary extension over HTTP. Its
parallel workers are off: one worker is faster within the server's process.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse
from oip import OnnxModel


class MLServerModel(MLModel):
    async def load(self) -> bool:
        self.onnx = OnnxModel(self.name, str(self.settings.parameters.uri))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {i.name: NumpyCodec.decode_input(i) for i in payload.inputs}
        arrays = self.onnx.session.run(self.onnx.outputs, inputs)
        outputs = [
            NumpyCodec.encode_output(name, array)
            for name, array in zip(self.onnx.outputs, arrays, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def serve(port: int, models: list[ModelSettings]) -> None:
    settings = Settings(
        host="127.0.0.1",
        http_port=port,
        grpc_port=port + 1,
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
        gzip_enabled=False,
        load_models_at_startup=False,
        use_structured_logging=False,
        logging_settings=str(Path(__file__).with_name("mlserver_logging.json")),
    )
    await MLServer(settings).start(models)


def main() -> None:
    models = [
        ModelSettings(
            name=name,
            implementation=MLServerModel,
            parameters=ModelParameters(uri=path),
        )
        for name, path in (argument.split("=", 1) for argument in sys.argv[2:])
    ]
    asyncio.run(serve(int(sys.argv[1]), models))


if __name__ == "__main__":
    main()
