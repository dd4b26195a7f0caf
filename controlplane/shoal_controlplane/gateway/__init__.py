"""Open Inference Protocol over HTTP and gRPC, router, admission."""
