"""`shoal device` against canned answers."""

from __future__ import annotations

import json

import pytest
import yaml
from starlette.responses import Response

DEVICES = "/api/v1/devices"
EVENTS = "/api/v1/events"


def event(number: int, message: str = "changed") -> dict:
    return {
        "id": number,
        "time": f"2026-01-01T00:00:{number:02}.000Z",
        "kind": "device.changed",
        "subject": "jetson-1",
        "message": message,
        "data": {},
    }


def test_list_shows_a_row_a_device(plane, shoal, documents):
    plane.pages(DEVICES, [documents.device("a"), documents.device("b", condition="cordoned")])
    done = shoal("device", "list")
    header, first, second = done.out.splitlines()
    assert done.code == 0
    assert header.split()[:3] == ["DEVICE", "CONDITION", "BOARD"]
    assert first.startswith("a ") and "Orin Nano (simulated)" in first and "m:1" in first
    assert "37 %" in first and "71 °C, throttled" in first and " 13 " in first
    assert "cordoned" in second


def test_what_an_offline_device_said_last_is_not_shown_as_news(plane, shoal, documents):
    plane.pages(DEVICES, [documents.device("a", condition="offline")])
    row = shoal("device", "list").out.splitlines()[1]
    assert "(m:1)" in row
    assert "37 %" not in row and "71" not in row and " 13 " not in row
    plane.answers[f"GET {DEVICES}/a"] = documents.device("a", condition="offline")
    shown = shoal("device", "show", "a").out
    assert "what it reported last" in shown
    assert "37 %" not in shown and "120" not in shown


@pytest.mark.parametrize(("style", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_json_and_yaml_are_what_the_api_said(plane, shoal, documents, style, parse):
    devices = [documents.device("a", labels={"é": "\x9b31m"}), documents.device("b")]
    plane.pages(DEVICES, devices)
    done = shoal("device", "list", "-o", style)
    assert parse(done.out) == devices
    assert "\x9b" not in done.out


def test_list_reads_all_pages_and_passes_filters_on(plane, shoal, documents):
    def page(call):
        if dict(call.query).get("cursor") == "next":
            return {"items": [documents.device("b")], "next_cursor": None}
        return {"items": [documents.device("a")], "next_cursor": "next"}

    plane.answers[f"GET {DEVICES}"] = page
    done = shoal("device", "list", "--label", "site=x", "--label", "rack=1", "--state", "online")
    assert [line.split()[0] for line in done.out.splitlines()] == ["DEVICE", "a", "b"]
    for call in plane.calls:
        assert [value for key, value in call.query if key == "label"] == ["site=x", "rack=1"]
        assert ("state", "online") in call.query


def test_an_empty_fleet_is_said_to_be_one(plane, shoal):
    plane.pages(DEVICES, [])
    assert shoal("device", "list").out == "no devices\n"
    assert json.loads(shoal("device", "list", "-o", "json").out) == []


def test_show_tells_that_a_board_is_simulated_and_how_fast_its_models_are(plane, shoal, documents):
    plane.answers[f"GET {DEVICES}/jetson-1"] = documents.device()
    done = shoal("device", "show", "jetson-1")
    assert "Orin Nano (jetson, T234), simulated" in done.out
    assert "simulated: computed on this machine" in done.out
    assert "8.30 ms" in done.out and "up to 4" in done.out and "48.0 MiB" in done.out
    assert "3.0 GiB of 8.0 GiB in use" in done.out
    assert "4, the device acts on 3" in done.out


def test_show_says_what_the_accelerators_are_and_how_they_fare(plane, shoal, documents):
    plane.answers[f"GET {DEVICES}/jetson-1"] = documents.device()
    shown = shoal("device", "show", "jetson-1").out
    assert "Ampere (gpu): fp16, int8, compute capability 8.7, 12.0 GiB/s from the host" in shown
    assert "cuda 12.6, tensorrt 10.3" in shown and "15W" in shown
    assert "50 %, 1.0 GiB of its memory in use" in shown


def test_a_model_that_fell_back_to_the_cpu_is_in_plain_sight(plane, shoal, documents):
    base = documents.device()
    replicas = [
        {**base["replicas"][0], "model": "npu", **documents.on_npu()},
        {**base["replicas"][0], "model": "cat", **documents.on_cpu()},
    ]
    device = {**base, "replicas": replicas}
    plane.answers[f"GET {DEVICES}/jetson-1"] = device
    plane.pages(DEVICES, [device])
    shown = shoal("device", "show", "jetson-1").out
    assert "100 % QNN (97 of 97 nodes)" in shown and "CPU only" in shown
    assert "warning: cat:1 runs on the CPU although the device has an accelerator" in shown
    assert "note on cat:1: cat:1 cann: libascendcl.so not found: install CANN 8.x" in shown
    assert "golden difference 0.0032" in shown
    assert "npu:1, cat:1 on the CPU" in shoal("device", "list").out


def test_a_device_that_has_not_spoken_yet_can_be_shown(plane, shoal, documents):
    silent = documents.device(
        board=None, cores=None, memory_bytes=None, disk_free_bytes=None, accelerators=[],
        runtimes=[], agent_version=None, goal=None, goal_seen=None, telemetry=None, replicas=[],
    )  # fmt: skip
    plane.answers[f"GET {DEVICES}/jetson-1"] = silent
    plane.pages(DEVICES, [silent])
    assert "no models" in shoal("device", "show", "jetson-1").out
    assert shoal("device", "list").out.splitlines()[1].startswith("jetson-1")


def test_an_unknown_device_is_said_in_the_words_of_the_api(plane, shoal, documents):
    plane.answers[f"GET {DEVICES}/x"] = documents.problem(404, "There is no device 'x'.")
    done = shoal("device", "show", "x")
    assert (done.code, done.out, done.err) == (1, "", "Error: There is no device 'x'.\n")


def test_label_sets_and_removes(plane, shoal, documents):
    plane.answers[f"PATCH {DEVICES}/jetson-1"] = documents.device(labels={"site": "bonn"})
    done = shoal("device", "label", "jetson-1", "site=bonn", "empty=", "rack-", "a=b-")
    assert done.out == "jetson-1: site=bonn\n"
    assert json.loads(plane.calls[0].body) == {
        "labels": {"site": "bonn", "empty": "", "rack": None, "a": "b-"}
    }


@pytest.mark.parametrize("text", ["site", "=x", "-"])
def test_a_label_of_another_form_is_wrong_usage(plane, shoal, text):
    done = shoal("device", "label", "jetson-1", "--", text)
    assert done.code == 2
    assert not plane.calls


@pytest.mark.parametrize(("verb", "cordoned"), [("cordon", True), ("uncordon", False)])
def test_cordon_and_uncordon(plane, shoal, documents, verb, cordoned):
    condition = "cordoned" if cordoned else "online"
    plane.answers[f"PATCH {DEVICES}/jetson-1"] = documents.device(condition=condition)
    done = shoal("device", verb, "jetson-1")
    assert done.out == f"jetson-1 is {verb}ed and {condition}\n"
    assert json.loads(plane.calls[0].body) == {"cordoned": cordoned}


def test_remove(plane, shoal):
    plane.answers[f"DELETE {DEVICES}/jetson-1"] = Response(status_code=204)
    assert shoal("device", "remove", "jetson-1").out == "jetson-1 was removed\n"
    done = shoal("device", "remove", "jetson-1", "-o", "json")
    assert json.loads(done.out) == {"removed": "jetson-1"}


def test_a_refused_removal_fails(plane, shoal, documents):
    plane.answers[f"DELETE {DEVICES}/a"] = documents.problem(409, "The device a is online.")
    done = shoal("device", "remove", "a")
    assert (done.code, done.err) == (1, "Error: The device a is online.\n")


@pytest.mark.parametrize("name", ["..", ".", "a/b", "", "a b", "x" * 65])
def test_what_is_no_name_never_becomes_a_path(plane, shoal, name):
    assert shoal("device", "remove", name).code == 2
    assert not plane.calls


def test_logs_are_newest_last_and_limited(plane, shoal):
    plane.answers[f"GET {EVENTS}"] = {
        "items": [event(3, "three"), event(2, "two"), event(1, "one")],
        "next_cursor": None,
    }
    done = shoal("device", "logs", "jetson-1", "--limit", "2")
    assert [line.split()[-1] for line in done.out.splitlines()] == ["two", "three"]
    assert ("subject", "jetson-1") in plane.calls[0].query


def test_logs_of_a_device_without_any_tell_whether_it_exists(plane, shoal, documents):
    plane.pages(EVENTS, [])
    assert shoal("device", "logs", "nobody").code == 1
    plane.answers[f"GET {DEVICES}/quiet"] = documents.device("quiet")
    done = shoal("device", "logs", "quiet")
    assert (done.code, done.out) == (0, "")


def test_follow_resumes_after_the_last_event_and_tells_when_the_stream_ends(plane, shoal):
    frames = "".join(f": heartbeat\n\nid: {n}\ndata: {json.dumps(event(n))}\n\n" for n in (3, 4))

    def events(call):
        if call.headers["accept"] == "text/event-stream":
            return Response(frames, media_type="text/event-stream")
        return {"items": [event(2), event(1)], "next_cursor": None}

    plane.answers[f"GET {EVENTS}"] = events
    done = shoal("device", "logs", "jetson-1", "--follow", "-o", "json")
    assert [json.loads(line)["id"] for line in done.out.splitlines()] == [1, 2, 3, 4]
    assert plane.calls[-1].headers["last-event-id"] == "2"
    assert done.code == 1
    assert "the stream of events ended" in done.err


def test_what_devices_say_cannot_drive_the_terminal(plane, shoal, documents):
    hostile = documents.device(labels={"a": "\x1b[2J\x07"}, notes=["\x9b31m \u202e reversed"])
    plane.answers[f"GET {DEVICES}/jetson-1"] = hostile
    shown = shoal("device", "show", "jetson-1").out
    assert "reversed" in shown
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown)
