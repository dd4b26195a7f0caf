"""Shoal's JAX worker: answers one ONNX model on a TPU, or on a CPU, by the inference protocol.

Runs by itself (`python -m shoal_controlplane.offload.tpu.worker`) and knows nothing of the control
plane. JAX is imported when something is compiled, so that the table of operators can be asked on
machines without it.
"""
