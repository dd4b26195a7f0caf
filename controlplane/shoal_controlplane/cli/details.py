"""What there is to say of models that devices serve, beyond a row of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shoal_controlplane.cli.output import Block, facts
from shoal_controlplane.cli.views import Serving

_COMPILED = {"here": ", compiled here", "shared": ", compiled by another device of its kind"}


def blocks(served: Sequence[tuple[str, Serving]]) -> list[Block]:
    """How each was loaded, then warnings and notes; `served` gives a name to each."""
    table = facts((name, _loaded(serving)) for name, serving in served)
    lines = [line for name, serving in served for line in _lines(name, serving)]
    return [*([table] if table.rows else []), *lines]


def _loaded(serving: Serving) -> str:
    """As in "onnxruntime 1.32.0 qnn-htp, loaded in 0.04 s, golden difference 0.0032"."""
    if not serving.runtime:
        return ""
    text = serving.runtime
    if serving.load_s:
        text += f", loaded in {serving.load_s:.2f} s"
    text += _COMPILED.get(serving.compiled, "")
    if serving.golden_error is not None:
        text += f", golden difference {serving.golden_error:.2g}"
    return text


def _lines(name: str, serving: Serving) -> Iterator[str]:
    if serving.fallback:
        yield f"warning: {name} runs on the CPU although the device has an accelerator"
    for note in serving.notes:
        yield f"note on {name}: {note}"
