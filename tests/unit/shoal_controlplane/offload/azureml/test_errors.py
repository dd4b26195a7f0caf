"""Sentences about Azure's errors, without what they carry along."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.offload.azureml import errors as azureml_errors
from shoal_controlplane.offload.target import Fault, TargetError

SIGNATURE = "sig=TopSecretSignature%3D"


@pytest.mark.parametrize(
    "text",
    [
        f"Max retries exceeded with url: /c/b?sv=1&{SIGNATURE} (Caused by TLS)",
        f"<urlopen https://a.example/c?{SIGNATURE}>",
        f"'https://a.example/c?{SIGNATURE}'",
    ],
)
def test_signatures_in_addresses_are_left_out(text: str) -> None:
    said = azureml_errors._sentence(text)
    assert "Secret" not in said
    assert "?…" in said


@given(st.text(max_size=2000))
def test_it_is_one_short_printable_line(text: str) -> None:
    said = azureml_errors._sentence(text)
    assert said
    assert said.isprintable()
    assert len(said) <= azureml_errors.MAX_SENTENCE


def test_only_what_can_be_a_code_is_told() -> None:
    assert azureml_errors._named("OutOfQuota") == " (OutOfQuota)"
    assert azureml_errors._named("it was: hunter2") == ""
    assert azureml_errors._entra("AADSTS7000215: Invalid secret hunter2") == " (AADSTS7000215)"


@pytest.mark.parametrize(
    ("text", "seconds"), [("17", 17.0), ("", None), ("-1", None), ("soon", None), ("9" * 9, None)]
)
def test_how_long_to_wait(text: str, seconds: float | None) -> None:
    assert azureml_errors._retry_after({"Retry-After": text}) == seconds


def test_own_errors_pass_and_a_missing_sdk_is_told() -> None:
    own = TargetError(Fault.QUOTA, "full")
    with pytest.raises(TargetError) as caught, azureml_errors.told():
        raise own
    assert caught.value is own
    with pytest.raises(TargetError, match="does not fit") as caught, azureml_errors.told():
        raise ImportError("cannot import name x")
    assert caught.value.fault is Fault.UNSUPPORTED
