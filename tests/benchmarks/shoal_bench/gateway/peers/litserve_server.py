"""LitServe: `python litserve_server.py PORT NAME=FILE ...`.

The body goes as it is to the model's worker, which decodes and encodes.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import litserve
from fastapi import Depends, Request, Response
from oip import HEADER_LENGTH, OnnxModel


async def read_body(request: Request) -> tuple[bytes, int | None]:
    length = request.headers.get(HEADER_LENGTH)
    return await request.body(), int(length) if length else None


class OnnxApi(litserve.LitAPI):
    def __init__(self, name: str, path: str) -> None:
        super().__init__(api_path=f"/v2/models/{name}/infer")
        self.name, self.path = name, path

    def setup(self, device: str) -> None:
        self.onnx = OnnxModel(self.name, self.path)

    def predict(self, body: tuple[bytes, int | None]) -> tuple[bytes, int | None]:
        return self.onnx.answer(*body)

    def encode_response(self, output: tuple[bytes, int | None]) -> Response:
        body, length = output
        if length is None:
            return Response(body, media_type="application/json")
        headers = {HEADER_LENGTH: str(length)}
        return Response(body, headers=headers, media_type="application/octet-stream")


def _decode_request(self: Any, request: Any) -> Any:
    return request


# The annotation tells LitServe and FastAPI how to read the request, so it must be evaluated.
_decode_request.__annotations__ = {"request": Annotated[tuple, Depends(read_body)]}
OnnxApi.decode_request = _decode_request


def main() -> None:
    apis = [OnnxApi(*argument.split("=", 1)) for argument in sys.argv[2:]]
    server = litserve.LitServer(
        apis, accelerator="cpu", workers_per_device=1, fast_queue=True, timeout=False
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
