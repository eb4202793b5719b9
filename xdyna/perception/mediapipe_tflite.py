"""What MediaPipe's tasks ask of models beyond what its .tflite files hold: metadata, and another choice of points.

The refined face model returns seven tensors (a mesh of 468 points; lips, eyes and irises in x and y; a score); the face
task takes two (478 points in x, y, z; the score). The choice of points that lies between is appended to the model as
operations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_MESH = 468
_REFINED = (  # which vertex a point is, in the order of the model's tensors: lips, one eye, the other
    (
        61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409,  # outer rim
        78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415,  # inner rim
        76, 77, 90, 180, 85, 16, 315, 404, 320, 307, 306, 184, 74, 73, 72, 11, 302, 303, 304, 408,
        62, 96, 89, 179, 86, 15, 316, 403, 319, 325, 292, 183, 42, 41, 38, 12, 268, 271, 272, 407,
    ),
    (
        33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173,  # rim
        130, 25, 110, 24, 23, 22, 26, 112, 243, 247, 30, 29, 27, 28, 56, 190,
        226, 31, 228, 229, 230, 231, 232, 233, 244, 113, 225, 224, 223, 222, 221, 189,
        35, 124, 46, 53, 52, 65, 143, 111, 117, 118, 119, 120, 121, 128, 245,
        156, 70, 63, 105, 66, 107, 55, 193,  # brow
    ),
    (
        263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398,  # rim
        359, 255, 339, 254, 253, 252, 256, 341, 463, 467, 260, 259, 257, 258, 286, 414,
        446, 261, 448, 449, 450, 451, 452, 453, 464, 342, 445, 444, 443, 442, 441, 413,
        265, 353, 276, 283, 282, 295, 372, 340, 346, 347, 348, 349, 350, 357, 465,
        383, 300, 293, 334, 296, 336, 285, 417,  # brow
    ),
)  # fmt: skip
"""Measured: the model's points were compared with the vertices of MediaPipe's own face mesh on several faces; the
nearest vertex is at 0.0003 of the face's size, the next at 0.008."""
_RIM = 16  # an iris lies as deep as the mean of its eye's rim, the first vertices of the eye


def with_normalisation(model: bytes, *, mean: float, std: float) -> bytes:
    """Add the metadata that tasks need to a model without: pixels enter as (value - mean) / std.

    Args:
        model: a .tflite with one image as input.
        mean: in steps of 8 bit.
        std: in steps of 8 bit.

    Source: TensorFlow Lite metadata schema.
    """
    import flatbuffers
    from mediapipe.tasks.metadata import metadata_schema_py_generated as schema

    graph = _Graph(model)
    image = schema.TensorMetadataT()
    image.name = "image"
    image.content = schema.ContentT()
    image.content.contentPropertiesType = schema.ContentProperties.ImageProperties
    image.content.contentProperties = schema.ImagePropertiesT()
    image.content.contentProperties.colorSpace = schema.ColorSpaceType.RGB
    step = schema.ProcessUnitT()
    step.optionsType = schema.ProcessUnitOptions.NormalizationOptions
    step.options = schema.NormalizationOptionsT()
    step.options.mean, step.options.std = [mean], [std]
    image.processUnits = [step]

    described = schema.SubGraphMetadataT()
    described.inputTensorMetadata, described.outputTensorMetadata = [image], []
    for number, _ in enumerate(graph.outputs()):
        tensor = schema.TensorMetadataT()
        tensor.name = f"output_{number}"
        described.outputTensorMetadata.append(tensor)
    metadata = schema.ModelMetadataT()
    metadata.name, metadata.minParserVersion = "model", "1.0.0"
    metadata.subgraphMetadata = [described]
    builder = flatbuffers.Builder(0)
    builder.Finish(metadata.Pack(builder), b"M001")
    graph.add_metadata("TFLITE_METADATA", bytes(builder.Output()))
    return graph.finish(graph.outputs())


def with_refined_points(model: bytes) -> bytes:
    """Make the refined face model fit the face task.

    Args:
        model: `face_landmark_with_attention.tflite`.

    Returns:
        A model with the outputs (1, 1, 1, 1434), points in px of its input, and (1, 1, 1, 1), the score.
    """
    graph = _Graph(model)
    mesh, *refined, score = graph.outputs()
    depths = [
        graph.mean(graph.gather(mesh, [3 * vertex + 2 for vertex in eye[:_RIM]], name=f"rim_{side}"), name=f"z_{side}")
        for side, eye in enumerate(_REFINED[1:])
    ]
    values = graph.concatenate([mesh, *refined, *depths], name="all_values")
    return graph.finish([graph.gather(values, _sources(), name="points"), score])


def _sources() -> list[int]:
    """Of each of the 3 * 478 values: its place among mesh, refined points and the two irises' depths, one row."""
    places = np.arange(3 * _MESH).reshape(_MESH, 3)
    start = places.size
    for vertices in _REFINED:
        places[list(vertices), :2] = start + np.arange(2 * len(vertices)).reshape(-1, 2)
        start += 2 * len(vertices)
    irises = start + np.arange(20).reshape(10, 2)
    depths = start + 20 + np.repeat([[0], [1]], 5, axis=0)
    return [int(place) for place in np.concatenate([places, np.concatenate([irises, depths], axis=1)]).ravel()]


class _Graph:
    """A .tflite model to which metadata and operations on rows (1, 1, 1, N) of float32 are added."""

    def __init__(self, model: bytes) -> None:
        from mediapipe.tasks.metadata import schema_py_generated as schema

        self._schema: Any = schema
        self._model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
        self._graph: Any = self._model.subgraphs[0]

    def outputs(self) -> list[int]:
        """The tensors that the model returns."""
        return [int(tensor) for tensor in self._graph.outputs]

    def gather(self, row: int, places: list[int], *, name: str) -> int:
        """The values of a row at `places`."""
        options = self._schema.GatherOptionsT()
        options.axis = 3
        return self._append("Gather", [row, self._constant(places)], len(places), options=options, name=name)

    def mean(self, row: int, *, name: str) -> int:
        """The mean of a row."""
        options = self._schema.ReducerOptionsT()
        options.keepDims = True
        return self._append("Mean", [row, self._constant([3])], 1, options=options, name=name, kind="Reducer")

    def concatenate(self, rows: list[int], *, name: str) -> int:
        """Rows behind each other."""
        options = self._schema.ConcatenationOptionsT()
        options.axis = 3
        length = sum(int(self._graph.tensors[row].shape[3]) for row in rows)
        return self._append("Concatenation", rows, length, options=options, name=name)

    def finish(self, outputs: list[int]) -> bytes:
        """The model with these outputs."""
        import flatbuffers

        if outputs != self.outputs():
            self._graph.outputs, self._model.signatureDefs = outputs, None
        builder = flatbuffers.Builder(4 * 2**20)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def add_metadata(self, name: str, content: bytes) -> None:
        """An entry that does not change what the model computes."""
        entry = self._schema.MetadataT()
        entry.name, entry.buffer = name, self._buffer(content)
        self._model.metadata = [*(self._model.metadata or []), entry]

    def _buffer(self, content: bytes) -> int:
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(content, dtype=np.uint8)
        self._model.buffers.append(buffer)
        return len(self._model.buffers) - 1

    def _constant(self, values: list[int]) -> int:
        buffer = self._buffer(np.array(values, dtype="<i4").tobytes())
        return self._tensor([len(values)], "INT32", name=f"constant_{len(self._graph.tensors)}", buffer=buffer)

    def _tensor(self, shape: list[int], kind: str, *, name: str, buffer: int = 0) -> int:
        """A new tensor; `buffer` 0 is the empty one."""
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, shape, getattr(self._schema.TensorType, kind)
        tensor.buffer = buffer
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _append(
        self, operator: str, inputs: list[int], length: int, *, options: Any, name: str, kind: str | None = None
    ) -> int:
        code = self._schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(self._schema.BuiltinOperator, operator.upper())
        code.version = 1
        self._model.operatorCodes.append(code)
        output = self._tensor([1, 1, 1, length], "FLOAT32", name=name)
        operation = self._schema.OperatorT()
        operation.opcodeIndex = len(self._model.operatorCodes) - 1
        operation.inputs, operation.outputs = inputs, [output]
        operation.builtinOptionsType = getattr(self._schema.BuiltinOptions, f"{kind or operator}Options")
        operation.builtinOptions = options
        self._graph.operators.append(operation)
        return output
