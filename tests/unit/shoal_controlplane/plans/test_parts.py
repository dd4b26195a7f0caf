from __future__ import annotations

import pytest
from support.plans import Rooms, analysis

from shoal_controlplane.errors import InvalidError
from shoal_controlplane.models.version import ModelVersion
from shoal_controlplane.planner.cuts.analysis import CutError

ANALYSIS = analysis()


async def model(rooms: Rooms) -> ModelVersion:
    return await rooms.models.get("cat", "1")


async def test_a_model_is_cut_once(rooms: Rooms) -> None:
    cat = await model(rooms)
    files = await rooms.parts.of(cat, ANALYSIS, (0, 1, 4))
    assert [(f.first, f.last) for f in files] == [(0, 1), (1, 4)]
    for file in files:
        assert len(rooms.artifacts.path(file.digest).read_bytes()) == file.size
    assert await rooms.parts.of(cat, ANALYSIS, (0, 1, 4)) == files
    assert rooms.cutter.asked == [(0, 1, 4)]
    assert not rooms.cutter.folders[0].exists()


async def test_parts_of_other_cuts_are_used_again(rooms: Rooms) -> None:
    cat = await model(rooms)
    await rooms.parts.of(cat, ANALYSIS, (0, 1, 4))
    await rooms.parts.of(cat, ANALYSIS, (0, 2, 4))
    files = await rooms.parts.ranges(cat, ANALYSIS, [(1, 4), (0, 2), (0, 1)])
    assert [(f.first, f.last) for f in files] == [(1, 4), (0, 2), (0, 1)]
    assert len(rooms.cutter.asked) == 2


async def test_the_whole_model_is_not_cut(rooms: Rooms) -> None:
    cat = await model(rooms)
    [file] = await rooms.parts.of(cat, ANALYSIS, (0, 4))
    assert (file.first, file.last, file.digest, file.size) == (0, 4, cat.digest, cat.size)
    assert (file.inputs, file.outputs, file.passes) == (ANALYSIS.inputs, ("y",), ())
    assert await rooms.parts.ranges(cat, ANALYSIS, [(0, 4)]) == (file,)
    assert rooms.cutter.asked == []


async def test_other_shapes_are_cut_anew(rooms: Rooms) -> None:
    cat = await model(rooms)
    small = await rooms.parts.of(cat, ANALYSIS, (0, 1, 4))
    large = analysis()
    large.shapes["x"] = (8, 4)
    assert await rooms.parts.of(cat, large, (0, 1, 4)) != small


async def test_an_artifact_that_vanished_is_cut_again(rooms: Rooms) -> None:
    cat = await model(rooms)
    files = await rooms.parts.of(cat, ANALYSIS, (0, 1, 4))
    rooms.artifacts.path(files[1].digest).unlink()
    assert await rooms.parts.of(cat, ANALYSIS, (0, 1, 4)) == files
    assert files[1].digest in rooms.artifacts
    assert len(rooms.cutter.asked) == 2
    rooms.artifacts.path(files[1].digest).unlink()
    rooms.cutter.flavour = "of another version of the cutter"
    again = await rooms.parts.of(cat, ANALYSIS, (0, 1, 4))
    assert again[1].digest != files[1].digest
    assert await rooms.parts.of(cat, ANALYSIS, (0, 1, 4)) == again


async def test_ranges_are_cut_in_as_few_runs_as_follow_one_another(rooms: Rooms) -> None:
    cat = await model(rooms)
    wanted = [(0, 1), (1, 2), (2, 4), (0, 2), (1, 3), (2, 4)]
    files = await rooms.parts.ranges(cat, ANALYSIS, wanted)
    assert [(f.first, f.last) for f in files] == wanted
    assert rooms.cutter.asked == [(0, 1, 2, 4), (0, 2, 4), (0, 1, 3, 4)]


async def test_what_cannot_be_cut(rooms: Rooms) -> None:
    cat = await model(rooms)
    rooms.cutter.error = CutError("the node If_3 stays in one piece.")
    with pytest.raises(InvalidError, match=r"^cat:1 cannot be cut: the node If_3 stays"):
        await rooms.parts.of(cat, ANALYSIS, (0, 1, 4))
    assert not rooms.cutter.folders[0].exists()
    assert rooms.plan_store.digests() == set()


async def test_parts_go_with_their_model_and_not_before(rooms: Rooms) -> None:
    cat = await model(rooms)
    files = await rooms.parts.of(cat, ANALYSIS, (0, 1, 4))
    await rooms.artifacts.remove(files[0].digest)
    assert files[0].digest in rooms.artifacts, "the store refers to it"
    await rooms.parts.keep({cat.digest})
    assert files[0].digest in rooms.artifacts
    await rooms.parts.keep(())
    assert files[0].digest not in rooms.artifacts
