"""Who Shoal is to Azure."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from shoal_controlplane.offload import credentials
from shoal_controlplane.offload.azureml.options import Options


class Credential:
    """Tokens of Microsoft Entra. A secret is read anew for each, so that a rotated one counts.

    `transport` is what pipelines of the SDKs are built with.
    """

    def __init__(self, options: Options, reference: str, transport: Mapping[str, Any]) -> None:
        self._options, self._reference, self._transport = options, reference, transport
        self._lock = threading.Lock()
        self._secret = ""
        self._inner: Any = None

    def get_token(self, *scopes: str, **kwargs: Any) -> Any:
        """As azure.core.credentials.TokenCredential."""
        return self._current().get_token(*scopes, **kwargs)

    def _current(self) -> Any:
        from azure.identity import ClientSecretCredential, DefaultAzureCredential

        options = self._options
        with self._lock:
            settings = {
                "authority": options.addresses.authority,
                # A cloud of its own does not know, and need not ask, the public ones.
                "disable_instance_discovery": bool(options.authority),
                **self._transport,
            }
            if self._reference == credentials.IDENTITY:
                if self._inner is None:
                    self._inner = DefaultAzureCredential(
                        managed_identity_client_id=options.client or None,
                        exclude_interactive_browser_credential=True,
                        exclude_shared_token_cache_credential=True,
                        **settings,
                    )
                return self._inner
            secret = credentials.secret(self._reference)
            if self._inner is None or secret != self._secret:
                self._inner = ClientSecretCredential(
                    options.tenant, options.client, secret, **settings
                )
                self._secret = secret
            return self._inner
