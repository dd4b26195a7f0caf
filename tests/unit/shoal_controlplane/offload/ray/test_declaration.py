"""What is declared to Ray Serve: ours as asked for, everything else as it was."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shoal_controlplane.offload.ray import declaration as declarations
from shoal_controlplane.offload.ray.app.arguments import Arguments
from shoal_controlplane.offload.ray.cluster import Application, ServeState
from shoal_controlplane.offload.ray.options import options_of
from shoal_controlplane.offload.target import CloudModel
from shoal_shared.signature import ModelSignature, TensorSpec

OPTIONS = options_of(
    {"address": "http://head:8265", "serve_url": "http://head:8123", "num_gpus": 1, "num_cpus": 3}
)
SIGNATURE = ModelSignature(
    inputs=(TensorSpec(name="a", datatype="FP32", shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
)
MODEL = CloudModel(
    "m", "1", "onnx", Path("m"), "sha256:0", "http://cp/sha256/0", SIGNATURE, max_batch=8
)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)


def arguments(token: str = "") -> Arguments:
    return declarations.arguments_of("ray", MODEL, 10, token, OPTIONS)


def application(declared: dict[str, Any] | None, status: str = "RUNNING") -> Application:
    return Application(status=status, deployed_app_config=declared)


def ours(replicas: int = 1) -> dict[str, Any]:
    return declarations.declaration(arguments(), replicas, "gcs://p.zip", OPTIONS)


@given(st.tuples(NAMES, NAMES), st.tuples(NAMES, NAMES))
def test_no_two_models_share_an_application_or_a_route(
    one: tuple[str, str], two: tuple[str, str]
) -> None:
    for name in (declarations.application_name, declarations.route_prefix):
        assert (name(one) == name(two)) == (one == two)


def test_a_declaration_is_read_as_it_was_written() -> None:
    there = application(ours(3))
    assert declarations.declared_arguments(there) == arguments()
    assert declarations.declared_replicas(there) == 3
    assert arguments().threads == 3
    assert arguments().gpu


def test_what_is_none_of_shoals_has_no_arguments() -> None:
    for declared in (
        None,
        {},
        {"import_path": "theirs:app", "args": {}},
        {"import_path": declarations.IMPORT_PATH},
        {"import_path": declarations.IMPORT_PATH, "args": {"owner": 1}},
    ):
        assert declarations.declared_arguments(application(declared)) is None


def test_neither_the_token_nor_what_follows_from_it_is_declared() -> None:
    token = declarations.serving_token("secret of the cluster")
    told = str(declarations.declaration(arguments(token), 1, "gcs://p.zip", OPTIONS))
    assert token not in told
    assert "secret" not in told
    assert declarations.serving_token("another") != token


def test_other_applications_stay_as_they_are() -> None:
    theirs = {"name": "theirs", "import_path": "x:y", "args": {"deep": [1, {"a": None}]}}
    state = ServeState(
        applications={
            "theirs": application(theirs, "DEPLOY_FAILED"),
            "leaving": application({"name": "leaving"}, "DELETING"),
            "program": application(None),
            "shoal:m:1": application(ours(1)),
        },
        controller_info={"node_id": "n"},
        http_options={"host": "0.0.0.0", "port": 9},
        target_capacity=50.0,
    )
    grown = declarations.configuration(state, "shoal:m:1", ours(2), OPTIONS.serve_url)
    assert grown["applications"] == [theirs, ours(2)]
    assert grown["http_options"] == {"host": "0.0.0.0", "port": 9}
    assert grown["target_capacity"] == 50.0
    gone = declarations.configuration(state, "shoal:m:1", None, OPTIONS.serve_url)
    assert gone["applications"] == [theirs]


def test_serve_starts_where_the_target_looks_for_it() -> None:
    state = ServeState(controller_info={"node_id": None})
    assert not state.runs
    declared = declarations.configuration(state, "shoal:m:1", ours(), OPTIONS.serve_url)
    assert declared == {"applications": [ours()], "http_options": {"port": 8123}}


def test_the_package_is_the_same_each_time_and_stands_alone(tmp_path: Path) -> None:
    name, content = declarations.package()
    declarations.package.cache_clear()
    assert declarations.package() == (name, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path)
    # As on a cluster, where nothing else of Shoal is installed.
    program = (
        "import sys; from pathlib import Path\n"
        "here = Path(sys.argv[1])\n"
        "sys.path[:] = [str(here)] + [p for p in sys.path"
        " if not (Path(p) / 'shoal_shared').is_dir()"
        " and not (Path(p) / 'shoal_controlplane').is_dir()]\n"
        "sys.modules.pop('shoal_controlplane', None)\n"
        "from shoal_controlplane.offload.ray.app import model, protocol\n"
        "import shoal_shared.oip\n"
        "for module in (model, protocol, shoal_shared.oip):\n"
        "    assert here in Path(module.__file__).parents, module.__file__\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60, cwd=tmp_path
    )
