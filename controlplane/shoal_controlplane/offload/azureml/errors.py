"""What the errors of Azure's SDKs mean, in plain sentences without secrets."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from shoal_controlplane.offload.target import Fault, TargetError

MAX_SENTENCE = 300

_QUOTA = re.compile(r"quota|OutOfCapacity|insufficient capacity", re.IGNORECASE)
_FAULTS = {
    401: Fault.CREDENTIALS,
    403: Fault.CREDENTIALS,
    404: Fault.NOT_DEPLOYED,
    408: Fault.TIMEOUT,
    409: Fault.CONFLICT,
    412: Fault.CONFLICT,
    429: Fault.THROTTLED,
    502: Fault.UNREACHABLE,
    503: Fault.UNREACHABLE,
    504: Fault.TIMEOUT,
}


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Errors of the SDKs as `TargetError`, without what they carry along."""
    try:
        yield
    except TargetError:
        raise
    except Exception as error:
        raise target_error(error) from None


def target_error(error: Exception) -> TargetError:
    """What an error of the SDKs means."""
    if isinstance(error, ImportError):
        return TargetError(
            Fault.UNSUPPORTED,
            f"Azure's SDK does not fit what is installed: {_sentence(str(error))}",
        )
    from azure.ai.ml.exceptions import MlException
    from azure.core import exceptions as core

    status = error.status_code if isinstance(error, core.HttpResponseError) else None
    if isinstance(error, core.ClientAuthenticationError) and (status or 400) < 429:
        cause = error.__cause__
        if isinstance(cause, core.ServiceRequestError | core.ServiceResponseError):
            return target_error(cause)
        return _refused(error, status)
    if status is not None:
        return _refusal(error, status)
    if isinstance(error, core.ServiceRequestTimeoutError | core.ServiceResponseTimeoutError):
        return TargetError(Fault.TIMEOUT, "Azure does not answer in time")
    if isinstance(error, core.ServiceRequestError | core.ServiceResponseError):
        return TargetError(Fault.UNREACHABLE, f"Azure cannot be reached: {_sentence(str(error))}")
    if isinstance(error, core.HttpResponseError | MlException):
        return TargetError(_fault_of(str(error), Fault.BROKEN), _sentence(str(error)))
    if isinstance(error, OSError):
        return TargetError(Fault.UNREACHABLE, f"the model cannot be sent: {error.strerror}")
    return TargetError(Fault.BROKEN, f"an answer of Azure cannot be used ({type(error).__name__})")


def _refusal(error: Any, status: int) -> TargetError:
    fault = _FAULTS.get(status, Fault.BROKEN if status >= 500 else Fault.UNSUPPORTED)
    if fault is Fault.CREDENTIALS:
        return _refused(error, status)
    code, said = _code_and_message(error)
    if status < 500:
        fault = _fault_of(f"{code} {said}", fault)
    headers = getattr(error.response, "headers", None) or {}
    return TargetError(
        fault, f"Azure answered {status}{_named(code)}: {_sentence(said)}", _retry_after(headers)
    )


def _refused(error: Any, status: int | None) -> TargetError:
    """What is said to wrong credentials may repeat them: only codes are told."""
    code, _ = _code_and_message(error)
    with_status = f" with {status}" if status else ""
    return TargetError(
        Fault.CREDENTIALS,
        f"Azure refuses the credentials{with_status}{_named(code)}{_entra(error)}",
    )


def _fault_of(text: str, otherwise: Fault) -> Fault:
    return Fault.QUOTA if otherwise is not Fault.THROTTLED and _QUOTA.search(text) else otherwise


def _code_and_message(error: Any) -> tuple[str, str]:
    told_error = getattr(error, "error", None)
    code = getattr(told_error, "code", None) or getattr(error, "error_code", None) or ""
    said = getattr(told_error, "message", None) or error.reason or ""
    return str(code), str(said)


def _named(code: str) -> str:
    return f" ({code})" if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", code) else ""


def _entra(error: object) -> str:
    found = re.search(r"AADSTS\d{1,9}", str(error))
    return f" ({found.group()})" if found else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After") or headers.get("retry-after") or ""
    return float(text) if text.isdecimal() and len(text) < 6 else None


def _sentence(text: str) -> str:
    """One line of `text`, without the queries of addresses, which carry signatures."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    plain = re.sub(r"\?[^\s'\")]*", "?…", " ".join(line.split()))
    return "".join(c for c in plain if c.isprintable())[:MAX_SENTENCE] or "it says no more"
