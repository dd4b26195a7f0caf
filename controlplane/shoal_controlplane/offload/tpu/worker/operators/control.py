"""Control flow."""

from __future__ import annotations

import numpy as np

from shoal_controlplane.offload.tpu.worker.operators.lazy import lax
from shoal_controlplane.offload.tpu.worker.operators.table import Call, Value, operator


@operator("If", attributes="then_branch else_branch")
def _if(call: Call, condition: Value) -> Value:
    chosen = [call.get("else_branch"), call.get("then_branch")]
    if isinstance(condition, np.ndarray):
        return call.branch(chosen[bool(condition.reshape(-1)[0])])
    try:
        return lax.cond(
            condition.reshape(-1)[0], lambda: call.branch(chosen[1]), lambda: call.branch(chosen[0])
        )
    except TypeError as error:
        raise call.unsupported("its branches give different shapes or types") from error
