"""The gRPC form of the Open Inference Protocol, as Triton's clients speak it."""

import os

# The control plane starts programs, but never forks to go on in the child; without this grpc
# logs a line for each of them.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
