from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shoal_controlplane.models.card import (
    AnchorBoxesOutput,
    CtcOutput,
    HeatmapBoxesOutput,
    ImageInput,
    InputSpec,
    LabelsOutput,
    ModelCard,
    ModelFacts,
    OutputSpec,
    TextInput,
)
from shoal_controlplane.models.media import (
    BoxesAnswer,
    MediaError,
    RankedAnswer,
    TextAnswer,
    image_to_tensor,
    load_picture,
    read_answer,
    text_to_tensor,
)
from shoal_controlplane.models.picture import Placement, place

LABELS = LabelsOutput("y", ("cat", "dog", "cow"), top_k=2)


def image_input(**changes: Any) -> ImageInput:
    values: dict[str, Any] = {
        "tensor": "x",
        "size": (4, 6),
        "resize": "stretch",
        "layout": "NHWC",
    }
    return ImageInput(**(values | changes))


def card(spec: InputSpec | None = None, output: OutputSpec = LABELS) -> ModelCard:
    return ModelCard(ModelFacts("model"), spec or image_input(), output)


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


RED = Image.new("RGB", (12, 8), (200, 100, 50))


class TestTensor:
    def test_formula_colour_order_and_layout(self) -> None:
        spec = image_input(layout="NCHW", color="BGR", mean=(10, 20, 30), scale=(1, 2, 0.5))
        x = image_to_tensor(card(spec), encoded(RED))["x"]
        assert (x.shape, x.dtype) == ((1, 3, 4, 6), np.float32)
        assert x.flags.c_contiguous
        np.testing.assert_allclose(x[0, :, 0, 0], [(50 - 10), (100 - 20) * 2, (200 - 30) * 0.5])
        np.testing.assert_allclose(x, x[:, :, :1, :1].repeat(4, 2).repeat(6, 3))

    @pytest.mark.parametrize(
        ("datatype", "dtype", "value"),
        [("FP16", np.float16, 72.0), ("UINT8", np.uint8, 72), ("INT8", np.int8, 72)],
    )
    def test_datatypes(self, datatype: str, dtype: Any, value: float) -> None:
        spec = image_input(datatype=datatype, mean=(128, 28, 0), scale=(1, 1, 9))
        x = image_to_tensor(card(spec), RED)["x"]
        assert x.dtype == dtype
        top = 450 if datatype == "FP16" else np.iinfo(dtype).max
        np.testing.assert_array_equal(x[0, 0, 0], np.array([value, value, min(450, top)], dtype))

    def test_padding_is_zero_and_centred(self) -> None:
        spec = image_input(size=(8, 8), resize="pad", mean=(100, 0, 0))
        x = image_to_tensor(card(spec), Image.new("RGB", (16, 8), (200, 0, 0)))["x"][0]
        np.testing.assert_array_equal(
            x[:, :, 0], np.array([[0, 0, 100, 100, 100, 100, 0, 0]] * 8).T
        )

    def test_centre_crop_takes_the_middle(self) -> None:
        wide = Image.new("RGB", (30, 10))
        wide.paste((255, 255, 255), (10, 0, 20, 10))
        x = image_to_tensor(card(image_input(size=(5, 5), resize="center-crop")), wide)["x"]
        assert x.min() > 230  # the filter reaches a little over the edge

    @pytest.mark.parametrize(
        ("picture", "width"), [((10, 48), 320), ((400, 48), 416), ((100, 12), 416)]
    )
    def test_a_line_keeps_its_height_and_is_padded(
        self, picture: tuple[int, int], width: int
    ) -> None:
        spec = image_input(size=(48, 320), resize="fit-height", multiple=32)
        assert image_to_tensor(card(spec), Image.new("RGB", picture))["x"].shape == (
            1,
            48,
            width,
            3,
        )

    @pytest.mark.parametrize(
        ("picture", "shape"),
        [((384, 191), (320, 640)), ((100, 1000), (640, 64)), ((1, 5000), (640, 32))],
    )
    def test_sides_are_multiples(self, picture: tuple[int, int], shape: tuple[int, int]) -> None:
        spec = image_input(size=(640, 640), resize="multiple-of", multiple=32)
        assert image_to_tensor(card(spec), Image.new("RGB", picture))["x"].shape == (1, *shape, 3)

    def test_a_text_model_takes_no_picture(self) -> None:
        with pytest.raises(MediaError, match="takes a text"):
            image_to_tensor(card(TextInput("t")), RED)

    @pytest.mark.parametrize("shape", [(1,), (1, 1)])
    def test_text(self, shape: tuple[int, ...]) -> None:
        x = text_to_tensor(card(TextInput("t", shape)), "Grüße\n")["t"]
        assert (x.shape, x.dtype) == (shape, np.object_)
        assert x.ravel()[0] == "Grüße\n".encode()

    def test_refused_texts(self) -> None:
        with pytest.raises(MediaError, match="takes a picture"):
            text_to_tensor(card(), "text")
        with pytest.raises(MediaError, match="not valid Unicode"):
            text_to_tensor(card(TextInput("t")), "\ud800")
        with pytest.raises(MediaError, match="longer than"):
            text_to_tensor(card(TextInput("t")), "x" * (1024 * 1024 + 1))


sides = st.integers(1, 4000)
resizes = st.sampled_from(["center-crop", "stretch", "pad", "fit-height", "multiple-of"])


@given(sides, sides, resizes)
def test_a_placement_stays_inside_and_leads_back(width: int, height: int, resize: str) -> None:
    spec = image_input(size=(64, 96), resize=resize, multiple=32)
    placed = place(spec, width, height)
    left, top, right, bottom = placed.crop
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    for axis in (0, 1):
        assert placed.content[axis] >= 1
        assert placed.offset[axis] + placed.content[axis] <= placed.canvas[axis] <= 4096
    (rows, columns), (down, aside) = placed.content, placed.offset
    content = np.array([[aside, down, aside + columns, down + rows]], dtype=np.float64)
    np.testing.assert_allclose(placed.to_picture(content), [placed.crop], atol=1e-6)


class TestPicture:
    @pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
    def test_formats(self, form: str, tmp_path: Path) -> None:
        path = tmp_path / "picture"
        path.write_bytes(encoded(RED, form))
        picture = load_picture(path)
        assert (picture.mode, picture.size) == ("RGB", (12, 8))
        np.testing.assert_allclose(picture.getpixel((5, 5)), (200, 100, 50), atol=6)

    @pytest.mark.parametrize(
        ("picture", "expected"),
        [
            (Image.new("L", (2, 2), 77), (77, 77, 77)),
            (Image.new("1", (2, 2), 1), (255, 255, 255)),
            (Image.new("RGBA", (2, 2), (0, 0, 0, 0)), (255, 255, 255)),
            (Image.new("RGBA", (2, 2), (9, 8, 7, 255)), (9, 8, 7)),
            (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
            (Image.fromarray(np.full((2, 2), 0x4D00, np.uint16)), (77, 77, 77)),
        ],
    )
    def test_modes(self, picture: Image.Image, expected: tuple[int, ...]) -> None:
        assert load_picture(encoded(picture)).getpixel((0, 0)) == expected

    def test_turned_pictures_are_set_upright(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        assert load_picture(encoded(RED, "JPEG", exif=exif)).size == (8, 12)

    def test_a_bomb_is_refused_before_it_is_unpacked(self) -> None:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return (
                struct.pack(">I", len(data))
                + kind
                + data
                + struct.pack(">I", zlib.crc32(kind + data))
            )

        for side in (8_000, 20_000, 2**31 - 1):
            header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
            bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            bomb += chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
            with pytest.raises(MediaError) as caught:
                load_picture(bomb)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("data", [b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x00" * 99])
    def test_other_bytes(self, data: bytes) -> None:
        with pytest.raises(MediaError, match="not a readable picture"):
            load_picture(data)

    def test_a_cut_picture(self) -> None:
        noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
        data = encoded(Image.fromarray(noise))
        with pytest.raises(MediaError, match="not a readable picture"):
            load_picture(data[: len(data) // 2])

    @given(st.integers(0, 200), st.integers(0, 255))
    def test_a_flipped_byte_gives_a_picture_or_a_clean_error(self, place: int, byte: int) -> None:
        data = bytearray(encoded(RED))
        data[place % len(data)] = byte
        try:
            assert load_picture(bytes(data)).mode == "RGB"
        except MediaError as error:
            assert "\n" not in str(error)

    def test_missing_and_oversized_files(self, tmp_path: Path) -> None:
        with pytest.raises(MediaError, match="There is no picture file"):
            load_picture(tmp_path / "none.png")
        with (tmp_path / "big.png").open("wb") as file:
            file.truncate(64 * 1024 * 1024 + 1)
        with pytest.raises(MediaError, match="larger than 64 MiB"):
            load_picture(tmp_path / "big.png")


class TestLabels:
    def test_ranking(self) -> None:
        answer = read_answer(card(), {"y": np.float32([[0.1, 0.7, 0.2]])})
        assert isinstance(answer, RankedAnswer)
        assert answer.lines() == ["dog  0.70", "cow  0.20"]

    def test_activations(self) -> None:
        logits = {"y": np.float32([[0.0, 1000.0, 0.0]])}
        soft = read_answer(card(output=LabelsOutput("y", LABELS.labels, 1, "softmax")), logits)
        assert soft.lines() == ["dog  1.00"]
        each = read_answer(card(output=LabelsOutput("y", LABELS.labels, 2, "sigmoid")), logits)
        assert each.lines() == ["dog  1.00", "cat  0.50"]

    @pytest.mark.parametrize(
        ("outputs", "message"),
        [
            ({}, "no tensor 'y'"),
            ({"y": np.zeros((1, 4), np.float32)}, "4 scores, its card has 3 labels"),
            ({"y": np.zeros((2, 3), np.float32)}, "not one row"),
            ({"y": np.float32(1)}, "not one row"),
            ({"y": np.array([["a", "b", "c"]])}, "not one row"),
            ({"y": np.array([[b"a", b"b", b"c"]], dtype=np.object_)}, "not one row"),
            ({"y": np.float32([[0, np.nan, 0]])}, "not finite"),
            ({"y": np.float32([[0, np.inf, 0]])}, "not finite"),
        ],
    )
    def test_outputs_that_do_not_fit(self, outputs: dict[str, Any], message: str) -> None:
        with pytest.raises(MediaError, match=message):
            read_answer(card(), outputs)


class TestText:
    CARD = card(output=CtcOutput("y", ("a", "b"), append_space=True))

    def read(self, *steps: int) -> TextAnswer:
        scores = np.full((1, len(steps), 4), 0.1, np.float32)
        for step, symbol in enumerate(steps):
            scores[0, step, symbol] = 0.5 + step / 100
        answer = read_answer(self.CARD, {"y": scores})
        assert isinstance(answer, TextAnswer)
        return answer

    def test_repeats_collapse_and_a_blank_parts_them(self) -> None:
        answer = self.read(0, 1, 1, 0, 1, 3, 3, 2, 2, 0)
        assert answer.text == "aa b"
        assert answer.confidence == pytest.approx(np.mean([0.51, 0.54, 0.55, 0.57]))
        assert answer.lines() == ["aa b  0.54"]

    def test_no_text(self) -> None:
        assert self.read(0, 0).lines() == self.read().lines() == ["(no text)  0.00"]

    def test_outputs_that_do_not_fit(self) -> None:
        with pytest.raises(MediaError, match="its card has 4 symbols"):
            read_answer(self.CARD, {"y": np.zeros((1, 5, 3), np.float32)})


class TestRegions:
    def test_boxes_lead_back_to_the_picture(self) -> None:
        spec = image_input(size=(64, 64), resize="multiple-of", multiple=32)
        output = HeatmapBoxesOutput("h", ("text",), unclip=0.0)
        heat = np.zeros((1, 1, 32, 64), np.float32)
        heat[0, 0, 8:16, 10:30] = 0.9
        heat[0, 0, 20:22, 10:30] = 0.9  # too thin
        heat[0, 0, 24:30, 40:50] = 0.4  # too weak
        answer = read_answer(card(spec, output), {"h": heat}, (128, 64))
        assert isinstance(answer, BoxesAnswer)
        assert answer.lines() == ["text  0.90  from (20, 16) to (60, 32)"]
        # A map of half the input's size means the same places.
        small = read_answer(card(spec, output), {"h": heat[:, :, ::2, ::2]}, (128, 64))
        assert small.lines() == answer.lines()
        plain = read_answer(card(spec, output), {"h": heat})
        assert plain.lines() == ["text  0.90  from (10, 8) to (30, 16)"]

    def test_growing_stops_at_the_border(self) -> None:
        spec = image_input(size=(32, 32))
        heat = np.ones((1, 1, 32, 32), np.float32)
        output = HeatmapBoxesOutput("h", ("text",), unclip=2.0)
        answer = read_answer(card(spec, output), {"h": heat}, (10, 20))
        assert answer.lines() == ["text  1.00  from (0, 0) to (10, 20)"]

    @pytest.mark.parametrize("shape", [(1, 2, 4, 4), (1, 4), (1,), (1, 1, 1, 4, 4), (1, 1, 4, 0)])
    def test_outputs_that_do_not_fit(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(MediaError, match="heat map has the form"):
            read_answer(
                card(output=HeatmapBoxesOutput("h", ("text",))), {"h": np.zeros(shape, np.float32)}
            )

    def test_a_map_with_nothing_in_it(self) -> None:
        output = HeatmapBoxesOutput("h", ("text",))
        answer = read_answer(card(output=output), {"h": np.zeros((1, 1, 4, 6))}, (5, 5))
        assert answer.lines() == ["nothing found"]


class TestObjects:
    SPEC = image_input(size=(32, 32), resize="pad")
    CARD = card(SPEC, AnchorBoxesOutput("b", "s", ("face", "hand"), (16,)))

    def outputs(self) -> dict[str, np.ndarray[Any, Any]]:
        boxes, scores = np.zeros((1, 8, 6), np.float32), np.full((1, 8, 2), -1000, np.float32)
        boxes[0, 0, :4] = [2, 4, 10, 12]  # anchor at (8, 8): centre (10, 12)
        boxes[0, 1, :4] = [2, 4, 10, 11]  # nearly the same
        boxes[0, 7, :4] = [0, -4, 4, 4]  # anchor at (24, 24): centre (24, 20)
        scores[0, 0, 0], scores[0, 1, 0], scores[0, 7, 1] = 3, 2, 1
        return {"b": boxes, "s": scores}

    def test_boxes_lead_back_to_the_picture(self) -> None:
        answer = read_answer(self.CARD, self.outputs(), (64, 32))
        # 64 x 32 is halved and lies from y = 8 to 24 in the input.
        assert answer.lines() == [
            "face  0.95  from (10, 0) to (30, 20)",
            "hand  0.73  from (44, 20) to (52, 28)",
        ]
        plain = read_answer(self.CARD, self.outputs())
        assert plain.lines()[0] == "face  0.95  from (5, 6) to (15, 18)"

    def test_nothing_found(self) -> None:
        outputs = self.outputs()
        outputs["s"][:] = -3
        assert read_answer(self.CARD, outputs, (9, 9)).lines() == ["nothing found"]

    @pytest.mark.parametrize(
        ("name", "shape"), [("b", (1, 7, 6)), ("b", (1, 8, 3)), ("s", (1, 8, 1)), ("s", (1, 8))]
    )
    def test_outputs_that_do_not_fit(self, name: str, shape: tuple[int, ...]) -> None:
        outputs = self.outputs() | {name: np.zeros(shape, np.float32)}
        with pytest.raises(MediaError, match="have the form"):
            read_answer(self.CARD, outputs, (9, 9))


def test_a_placement_clips_to_the_picture() -> None:
    placed = Placement((10, 10), (0.0, 0.0, 10.0, 10.0), (10, 10), (0, 0), (10, 10))
    np.testing.assert_array_equal(placed.to_picture(np.array([[-5.0, -1, 50, 5]])), [[0, 0, 10, 5]])
