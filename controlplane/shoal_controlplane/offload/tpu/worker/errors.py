"""What the worker refuses."""

from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be read or compiled; the text is one plain sentence."""


class UnsupportedError(ModelError):
    """A model with something that the worker lacks, named with operator, domain, opset and
    node."""


class RequestError(ValueError):
    """A request that does not fit the model; the text is one plain sentence."""
