"""OpenCV's face detector, with a model of YuNet's layout that finds faces where bright pixels mark them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from yunet import SIDE, STRIDE, marked, marker_model

from ringnet_ext.detection.boxes import FaceBoxes, left_to_right


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return marker_model(tmp_path_factory.mktemp("yunet") / "markers.onnx")


def expected(cells, scale=1.0):
    corners = [
        (c * STRIDE - SIDE / 2, r * STRIDE - SIDE / 2, c * STRIDE + SIDE / 2, r * STRIDE + SIDE / 2) for c, r in cells
    ]
    return np.array(corners) / scale


def test_faces_are_found_from_left_to_right(model):
    cells = [(12, 3), (3, 6), (7, 4)]
    found = FaceBoxes(model)(marked(480, 320, cells))
    assert np.abs(found[:, :4] - expected(sorted(cells))).max() < 0.01 and (found[:, 4] > 0.99).all()


def test_a_large_image_is_shrunk_and_the_boxes_are_its_own(model):
    cells = [(4, 4), (20, 10)]
    small = marked(1024, 512, cells)
    found = FaceBoxes(model)(np.repeat(np.repeat(small, 3, 0), 3, 1))
    assert np.abs(found[:, :4] - expected(cells, 1 / 3)).max() < 0.05


def test_none_and_scores(model):
    detector = FaceBoxes(model)
    assert detector(marked(320, 320, [])).shape == (0, 5)
    half = marked(320, 320, [(4, 4)]) // 2  # its score is the root of class times object
    assert len(detector(half)) == 0 and len(FaceBoxes(model, 0.4)(half)) == 1


def test_several_threads_and_sizes(model):
    detector = FaceBoxes(model)
    cases = [[(2 + i % 5, 3)] for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda case: detector(marked(256 + 32 * (case[0][0] % 3), 224, case)), cases))
    for boxes, case in zip(found, cases, strict=True):
        assert np.abs(boxes[:, :4] - expected(case)).max() < 0.01


def test_what_is_no_model_of_yunet_is_named(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=r"nothing.onnx: no such model of OpenCV's FaceDetectorYN"):
        FaceBoxes(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("something else")
    with pytest.raises(ValueError, match=r"text.onnx: OpenCV's FaceDetectorYN cannot be made of it"):
        FaceBoxes(tmp_path / "text.onnx")
    other = onnx.load(model)
    for node in other.graph.node:
        node.output[:] = [name.replace("cls_", "class_") for name in node.output]
    for output in other.graph.output:
        output.name = output.name.replace("cls_", "class_")
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"other.onnx: "):
        FaceBoxes(tmp_path / "other.onnx")(marked(320, 320, []))


def test_left_to_right_keeps_the_order_of_equal_ones():
    assert left_to_right(np.array([3.0, 1, 3, 2])).tolist() == [1, 3, 0, 2]
