"""Recurrent layers, as one scan over time a direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from shoal_controlplane.offload.tpu.worker.operators.lazy import jax, jnp, lax
from shoal_controlplane.offload.tpu.worker.operators.table import Call, Value, operator

_DIRECTIONS = ("forward", "reverse", "bidirectional")
_ATTRIBUTES = "activations hidden_size"
_LAYOUTS = {"direction": _DIRECTIONS, "layout": (0, 1)}

Step = Callable[[Any, Value], tuple[Any, Value]]


class _Layer:
    """What the recurrent operators have in common: weights a direction, layouts, the scan."""

    def __init__(self, call: Call, x: Value, w: Value, r: Value, lengths: Value) -> None:
        self.call = call
        self.batch_first = call.get("layout", 0) == 1
        self.x = jnp.swapaxes(x, 0, 1) if self.batch_first else jnp.asarray(x)
        self.steps, self.batch, _ = self.x.shape
        self.hidden = r.shape[-1]
        self.directions = w.shape[0]
        if lengths is not None and (call.constant(lengths, "sequence lengths") != self.steps).any():
            raise call.unsupported("its sequences differ in length")

    def activations(self, names: list[str]) -> None:
        """Refuse others than the defaults."""
        given = self.call.get("activations")
        if given and [name.lower() for name in given] != [n.lower() for n in names]:
            raise self.call.unsupported(f"its activations are {', '.join(given)}"[:200])

    def start(self, state: Value, direction: int) -> Value:
        if state is None:
            return jnp.zeros((self.batch, self.hidden), self.x.dtype)
        return state[:, direction] if self.batch_first else state[direction]

    def run(self, steps: list[Step], starts: list[Any]) -> tuple[Value, list[Any]]:
        """Outputs over time and the last states: one step function and start a direction."""
        outputs, lasts = [], []
        for i, (step, start) in enumerate(zip(steps, starts, strict=True)):
            backwards = self.call.get("direction", "forward") == "reverse" or i == 1
            last, out = lax.scan(step, start, self.x, reverse=backwards)
            outputs.append(out)
            lasts.append(last)
        # [steps, directions, batch, hidden]
        return jnp.stack(outputs, 1), lasts

    def out(self, y: Value) -> Value:
        return y.transpose(2, 0, 1, 3) if self.batch_first else y

    def last(self, states: list[Value]) -> Value:
        return jnp.stack(states, 1 if self.batch_first else 0)


def _bias(b: Value, direction: int, gates: int, hidden: int) -> tuple[Value, Value]:
    """Biases of the input and of the recurrence."""
    if b is None:
        zero = np.zeros(gates * hidden, np.float32)
        return zero, zero
    return b[direction, : gates * hidden], b[direction, gates * hidden :]


@operator("LSTM", since=7, attributes=_ATTRIBUTES, only={**_LAYOUTS, "input_forget": (0,)})
def _lstm(
    call: Call,
    x: Value,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    initial_h: Value = None,
    initial_c: Value = None,
    peepholes: Value = None,
) -> tuple[Value, Value, Value]:
    layer = _Layer(call, x, w, r, lengths)
    layer.activations(["Sigmoid", "Tanh", "Tanh"] * layer.directions)

    def step_of(d: int) -> Step:
        in_bias, re_bias = _bias(b, d, 4, layer.hidden)
        peep = None if peepholes is None else jnp.split(peepholes[d], 3)

        def step(state: tuple[Value, Value], now: Value) -> tuple[tuple[Value, Value], Value]:
            h, c = state
            gates = now @ w[d].T + h @ r[d].T + (in_bias + re_bias)
            i, o, f, g = jnp.split(gates, 4, axis=-1)
            if peep is not None:
                i, f = i + peep[0] * c, f + peep[2] * c
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            if peep is not None:
                o = o + peep[1] * c
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        return step

    each = range(layer.directions)
    y, lasts = layer.run(
        [step_of(d) for d in each],
        [(layer.start(initial_h, d), layer.start(initial_c, d)) for d in each],
    )
    return layer.out(y), layer.last([h for h, _ in lasts]), layer.last([c for _, c in lasts])


@operator("GRU", since=7, attributes=f"{_ATTRIBUTES} linear_before_reset", only=_LAYOUTS)
def _gru(
    call: Call,
    x: Value,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    initial_h: Value = None,
) -> tuple[Value, Value]:
    layer = _Layer(call, x, w, r, lengths)
    layer.activations(["Sigmoid", "Tanh"] * layer.directions)
    size = layer.hidden

    def step_of(d: int) -> Step:
        in_bias, re_bias = _bias(b, d, 3, size)

        def step(h: Value, now: Value) -> tuple[Value, Value]:
            new = now @ w[d].T + in_bias
            old = h @ r[d, : 2 * size].T + re_bias[: 2 * size]
            update, reset = jnp.split(jax.nn.sigmoid(new[:, : 2 * size] + old), 2, axis=-1)
            weights, bias = r[d, 2 * size :].T, re_bias[2 * size :]
            if call.get("linear_before_reset", 0):
                candidate = jnp.tanh(new[:, 2 * size :] + reset * (h @ weights + bias))
            else:
                candidate = jnp.tanh(new[:, 2 * size :] + (reset * h) @ weights + bias)
            h = (1 - update) * candidate + update * h
            return h, h

        return step

    each = range(layer.directions)
    y, lasts = layer.run([step_of(d) for d in each], [layer.start(initial_h, d) for d in each])
    return layer.out(y), layer.last(lasts)


@operator("RNN", since=7, attributes=_ATTRIBUTES, only=_LAYOUTS)
def _rnn(
    call: Call,
    x: Value,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    initial_h: Value = None,
) -> tuple[Value, Value]:
    layer = _Layer(call, x, w, r, lengths)
    layer.activations(["Tanh"] * layer.directions)

    def step_of(d: int) -> Step:
        in_bias, re_bias = _bias(b, d, 1, layer.hidden)

        def step(h: Value, now: Value) -> tuple[Value, Value]:
            h = jnp.tanh(now @ w[d].T + h @ r[d].T + (in_bias + re_bias))
            return h, h

        return step

    each = range(layer.directions)
    y, lasts = layer.run([step_of(d) for d in each], [layer.start(initial_h, d) for d in each])
    return layer.out(y), layer.last(lasts)
