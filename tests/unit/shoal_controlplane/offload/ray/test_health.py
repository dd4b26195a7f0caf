"""How Serve's words become a health."""

from __future__ import annotations

from typing import Any

from shoal_controlplane.offload.ray.cluster import Application, Deployment, Replica, sentence
from shoal_controlplane.offload.ray.health import judge
from shoal_controlplane.offload.target import Health


def application(
    states: tuple[str, ...],
    wanted: int,
    status: str = "DEPLOYING",
    deployment: tuple[str, str] = ("UPDATING", ""),
    needs: dict[str, float] | None = None,
    message: str = "",
) -> Application:
    declared: dict[str, Any] = {"deployments": [{"name": "Model", "num_replicas": wanted}]}
    return Application(
        status=status,
        message=message,
        deployed_app_config=declared,
        deployments={
            "Model": Deployment(
                status=deployment[0],
                message=deployment[1],
                required_resources=needs or {"CPU": 1.0},
                replicas=tuple(Replica(state) for state in states),
            )
        },
    )


def test_replicas_that_run_are_ready() -> None:
    there = application(("RUNNING", "RUNNING"), 2, "RUNNING", ("HEALTHY", "all is well"))
    assert judge(there, [{"CPU": 4.0}]) == Health(2, 2)


def test_replicas_that_start_are_not() -> None:
    there = application(("RUNNING", "STARTING"), 2)
    assert judge(there, [{"CPU": 4.0}]) == Health(1, 2, "1 of 2 replicas are ready")


def test_before_ray_built_the_application() -> None:
    there = Application(status="DEPLOYING", deployed_app_config={"deployments": []})
    assert judge(there) == Health(0, 1, "0 of 1 replicas are ready")


def test_an_application_that_ends_is_wanted_no_more() -> None:
    assert judge(application(("STOPPING",), 1, "DELETING")) == Health(0, 0)


def test_what_can_never_fit_is_told_as_a_quota() -> None:
    there = application(("STARTING",), 1, needs={"CPU": 3.0, "GPU": 1.0, "memory": 0.0})
    said = "quota: no node of the cluster is as large as a replica, which needs 3 CPU, 1 GPU"
    assert judge(there, [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 8.0}]).reason == said
    assert "quota" not in judge(there, [{"CPU": 1.0}, {"CPU": 3.0, "GPU": 1.0}]).reason
    assert "quota" not in judge(there).reason, "nothing is known"


def test_replicas_of_the_declaration_before_do_not_count() -> None:
    old, new = Replica("RUNNING", start_time_s=10.0), Replica("RUNNING", start_time_s=20.5)
    declared: dict[str, Any] = {"deployments": [{"name": "Model", "num_replicas": 2}]}
    for status, ready in (("UPDATING", 1), ("UPSCALING", 2), ("HEALTHY", 2)):
        there = Application(
            status="DEPLOYING",
            last_deployed_time_s=20.0,
            deployed_app_config=declared,
            deployments={"Model": Deployment(status=status, replicas=(old, new))},
        )
        assert judge(there).ready == ready


def test_what_does_not_fit_now_is_told_as_a_quota() -> None:
    message = (
        "Deployment 'Model' has 1 replicas that have taken more than 30s to be scheduled. This may "
        "be due to waiting for the cluster to auto-scale or for a runtime environment to be "
        'installed. Resources required for each replica: {"CPU": 3.0}, total resources available: '
        '{"CPU": %s}. Use `ray status` for more details.'
    )
    needs = {"CPU": 3.0}
    full = application(("STARTING",), 1, deployment=("UPDATING", message % "1.0"), needs=needs)
    said = "quota: the cluster has no room now for a replica, which needs 3 CPU"
    assert judge(full, [{"CPU": 4.0}]).reason == said
    slow = application(("STARTING",), 1, deployment=("UPDATING", message % "3.0"), needs=needs)
    assert judge(slow, [{"CPU": 4.0}]).reason.startswith("Ray: Deployment 'Model' has 1 replicas")


def test_of_a_traceback_the_error_is_told() -> None:
    message = (
        "The deployment failed to start 3 times in a row. Error:\n"
        "\x1b[36mray::ServeReplica:x:Model.initialize()\x1b[39m (pid=1)\n"
        '  File "x.py", line 1, in y\n'
        "    raise RuntimeError(traceback.format_exc())\n"
        "RuntimeError: Traceback (most recent call last):\n"
        '  File "x.py", line 1, in y\n'
        "shoal.ray_app.StartError: http://cp/x is not the model\n"
    )
    there = application((), 1, "DEPLOY_FAILED", ("DEPLOY_FAILED", message))
    assert judge(there).reason == "Ray: http://cp/x is not the model"
    lacks = "Traceback (most recent call last):\n  x\nImportError: No module named 'msgspec'"
    failed = application((), 1, "DEPLOY_FAILED", ("", ""), message=lacks)
    assert judge(failed).reason == "Ray: ImportError: No module named 'msgspec'"


def test_a_sentence_is_one_line_of_bounded_length() -> None:
    said = sentence("a\x00b\n" + "long " * 1000)
    assert "\n" not in said
    assert "\x00" not in said
    assert len(said) <= 300
    assert sentence("") == ""
