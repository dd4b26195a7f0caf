"""What agent and control plane agree on: topics, messages, tensors. No I/O."""
