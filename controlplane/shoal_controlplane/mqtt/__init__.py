"""The broker, the link to it, ingress and publisher."""
