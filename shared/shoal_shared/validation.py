"""Whether a request fits a model: the same check at the gateway and on the device."""

from __future__ import annotations

from shoal_shared.oip import InferRequest, OipError
from shoal_shared.signature import ModelSignature, shape_fits


def check_request(
    request: InferRequest, signature: ModelSignature, max_batch: int, most: int = 0
) -> int:
    """Check names, datatypes, shapes and requested outputs; return the number of batch items.

    `max_batch` is 0 where the model has no batch dimension; then a request is one item. Up to
    `most` items are accepted where a batch larger than `max_batch` will be split. Raises
    `OipError` with one sentence that names what was expected.
    """
    given = {tensor.name: tensor for tensor in request.inputs}
    if len(given) != len(request.inputs):
        raise OipError("an input is given more than once")
    items: int | None = None
    for spec in signature.inputs:
        tensor = given.pop(spec.name, None)
        if tensor is None:
            raise OipError(f"input '{spec.name}' is missing")
        if tensor.datatype != spec.datatype:
            raise OipError(
                f"input '{spec.name}' is {tensor.datatype}, but the model takes {spec.datatype}"
            )
        shape = tensor.data.shape
        if not shape_fits(shape, spec.shape):
            raise OipError(
                f"input '{spec.name}' has shape {list(shape)}, "
                f"but the model takes {list(spec.shape)}"
            )
        if max_batch:
            if items is not None and shape[0] != items:
                raise OipError("the inputs differ in their batch dimension")
            items = shape[0]
    if given:
        expected = ", ".join(spec.name for spec in signature.inputs)
        raise OipError(f"the model has no input '{next(iter(given))}'; its inputs are {expected}")
    if max_batch and items is not None and items > max(max_batch, most):
        if most > max_batch:
            raise OipError(f"a batch of {items} is more than the limit of {most}: send it in parts")
        raise OipError(f"a batch of {items} is more than the model's limit of {max_batch}")
    if request.outputs:
        _check_outputs(request, signature)
    return max(items or 1, 1)


def _check_outputs(request: InferRequest, signature: ModelSignature) -> None:
    known = [spec.name for spec in signature.outputs]
    names = [output.name for output in request.outputs]
    if len(set(names)) != len(names):
        raise OipError("an output is asked for more than once")
    for name in names:
        if name not in known:
            raise OipError(f"the model has no output '{name}'; its outputs are {', '.join(known)}")
