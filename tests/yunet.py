"""An ONNX file with the inputs and outputs of YuNet, OpenCV's face detector; it finds faces where white cells are."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDE, SIDE = 32, 96  # of the marks' cells, and of the boxes that they stand for


def marker_model(path):
    """An ONNX file with YuNet's input and twelve outputs. Its score in a cell of 32 x 32 pixels is 1 where the cell is
    white and 0 where it is black; the box there has a side of 96 pixels around the cell's upper left corner. The finer
    cells never score."""
    nodes, constants, outputs = [], [], []

    def constant(name, array):
        constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    weight = constant("average", np.full((1, 3, 1, 1), 1 / 3 / 255, np.float32))
    grey = node("Conv", ["input", weight], "grey")
    for stride in (8, 16, 32):
        cells = node("AveragePool", [grey], f"cells{stride}", kernel_shape=[stride, stride], strides=[stride, stride])
        if stride != STRIDE:
            cells = node("Mul", [cells, constant(f"none{stride}", np.float32([0]))], f"no{stride}")
        column = node("Reshape", [cells, constant(f"column{stride}", np.int64([1, -1, 1]))], f"score{stride}")
        zero = node("Mul", [column, constant(f"zero{stride}", np.float32([0]))], f"zeros{stride}")
        box = constant(f"of_cell{stride}", np.float32([0, 0, np.log(SIDE / stride), np.log(SIDE / stride)]))
        for name, value in (("cls", column), ("obj", column)):
            outputs.append((node("Identity", [value], f"{name}_{stride}"), 1))
        outputs.append((node("Add", [zero, box], f"bbox_{stride}"), 4))
        points = constant(f"points{stride}", np.zeros(10, np.float32))
        outputs.append((node("Add", [zero, points], f"kps_{stride}"), 10))
    names = sorted(outputs, key=lambda output: "cls obj bbox kps".split().index(output[0].split("_")[0]))
    graph = helper.make_graph(
        nodes,
        "markers",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, width]) for name, width in names],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def marked(width, height, cells):
    """A black picture with these cells white."""
    image = np.zeros((height, width, 3), np.uint8)
    for column, row in cells:
        image[row * STRIDE : (row + 1) * STRIDE, column * STRIDE : (column + 1) * STRIDE] = 255
    return image
