"""Writes models as TensorFlow's converter and the ai-edge-quantizer write them into a folder: `python converter_models.py FOLDER`.

A process of its own: TensorFlow takes seconds and hundreds of megabytes to import, and prints what it likes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

import keras  # type: ignore[import-not-found]
import numpy as np
import tensorflow as tf  # type: ignore[import-not-found]
from keras import layers as kl

Layer = Callable[[Any], Any]
SEED = 1


def functional(shape: tuple[int, ...], body: Layer) -> Any:
    """A Keras model with random weights, whose batch norms fit its activations."""
    keras.utils.set_random_seed(SEED)
    x = kl.Input(shape)
    model = keras.Model(x, body(x))
    for layer in model.layers:
        if isinstance(layer, kl.BatchNormalization):
            layer.momentum = 0.0
    model(np.stack([sample[0][0] for sample in samples(shape)]), training=True)
    return model


def samples(shape: tuple[int, ...]) -> Iterator[list[Any]]:
    rng = np.random.default_rng(SEED)
    for _ in range(8):
        yield [rng.normal(size=(1, *shape)).astype(np.float32)]


class Call(kl.Layer):  # type: ignore[misc]
    """A TensorFlow function as a layer."""

    def __init__(self, function: Layer) -> None:
        super().__init__()
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(x)


def block(x: Any, filters: int, stride: int = 1, kernel: int = 3) -> Any:
    y = kl.Conv2D(filters, kernel, strides=stride, padding="same")(x)
    return kl.ReLU()(kl.BatchNormalization()(y))


def autoencoder(x: Any) -> Any:
    """MLPerf Tiny's anomaly detection, all its widths."""
    y = x
    for units in (128, 128, 8, 128, 128):
        y = kl.ReLU()(kl.BatchNormalization()(kl.Dense(units)(y)))
    return kl.Dense(640)(y)


def resnet(x: Any) -> Any:
    y = block(x, 8)
    for filters, stride in ((8, 1), (16, 2)):
        z = kl.BatchNormalization()(kl.Conv2D(filters, 3, padding="same")(block(y, filters, stride)))
        y = kl.ReLU()(kl.add([kl.Conv2D(filters, 1, strides=stride, padding="same")(y) if stride > 1 else y, z]))
    return kl.Dense(10, activation="softmax")(kl.Flatten()(kl.AveragePooling2D(4)(y)))


def separable(x: Any) -> Any:
    """Keyword spotting and visual wake words: depthwise, then pointwise, ReLU6 among them."""
    y = block(x, 16, 2)
    for _ in range(2):
        y = kl.ReLU(6.0)(kl.BatchNormalization()(kl.DepthwiseConv2D(3, padding="same")(y)))
        y = block(y, 16, 1, 1)
    return kl.Dense(12, activation="softmax")(kl.GlobalAveragePooling2D()(y))


def inverted(x: Any) -> Any:
    """MobileNetV3 and EfficientNet: squeeze and excite, hard swish and swish, a sum past them."""
    y = kl.Conv2D(16, 3, strides=2, padding="same")(kl.Rescaling(1 / 2, -0.25)(x))
    y = Call(lambda t: t * tf.nn.relu6(t + 3.0) / 6.0)(y)
    gate = kl.Conv2D(4, 1, activation="relu")(kl.GlobalAveragePooling2D(keepdims=True)(y))
    y = kl.Multiply()([y, kl.Conv2D(16, 1, activation="sigmoid")(gate)])
    z = kl.Activation("swish")(kl.DepthwiseConv2D(3, padding="same")(y))
    return kl.Dense(10)(kl.GlobalAveragePooling2D()(kl.Add()([y, z])))


def stream(x: Any) -> Any:
    """A streaming wake word: one-dimensional and dilated convolutions, pools along time."""
    y = kl.ReLU()(kl.BatchNormalization()(kl.Conv1D(16, 5)(x)))
    y = kl.ReLU()(kl.Conv1D(16, 3, dilation_rate=2)(y))
    y = kl.MaxPooling1D(2)(kl.SeparableConv1D(16, 3)(y))
    return kl.Dense(3)(kl.GlobalAveragePooling1D()(kl.AveragePooling1D(2)(y)))


def logits(x: Any) -> Any:
    """A residual network without the softmax at its end."""
    y = kl.ReLU(6.0)(kl.DepthwiseConv2D(3, padding="same")(block(x, 16)))
    y = kl.MaxPooling2D()(kl.ReLU()(kl.add([y, kl.Conv2D(16, 1)(y)])))
    y = kl.Concatenate()([kl.AveragePooling2D(2)(y), block(y, 16, 2)])
    return kl.Dense(10)(kl.Dense(16, activation="relu")(kl.GlobalAveragePooling2D()(y)))


def dilated(x: Any) -> Any:
    y = kl.Conv2D(8, 3, dilation_rate=2, padding="same")(x)
    return kl.Dense(5)(kl.Flatten()(kl.DepthwiseConv2D(3, dilation_rate=3, padding="same")(y)))


def rows(x: Any) -> Any:
    """Dense layers and a softmax on each row of a sequence."""
    y = kl.Softmax()(kl.Dense(6)(kl.Dense(8, activation="relu")(x)))
    return kl.Dense(4)(kl.Flatten()(y))


def extremes(x: Any) -> Any:
    y = kl.Conv2D(8, 3)(x)
    y = kl.Maximum()([kl.ReLU(max_value=1.0)(y), Call(lambda t: tf.clip_by_value(t, -0.5, 0.7))(y)])
    return kl.Dense(5)(kl.Concatenate()([kl.GlobalMaxPooling2D()(y), Call(lambda t: tf.reduce_max(t, [1, 3]))(y)]))


def moved(x: Any) -> Any:
    y = Call(lambda t: tf.pad(t, [[0, 0], [1, 1], [2, 1], [0, 0]], "REFLECT"))(kl.Conv2D(8, 3)(x))
    y = Call(lambda t: tf.pad(t, [[0, 0], [1, 0], [2, 1], [0, 0]], constant_values=0.7))(y)
    y = Call(lambda t: tf.pad(t, [[0, 0], [0, 1], [1, 0], [0, 0]], "SYMMETRIC"))(y)
    y = Call(lambda t: tf.gather(t, [3, 1, 2, 0], axis=3))(y)
    return kl.Dense(5)(kl.Flatten()(Call(lambda t: tf.stack([t[..., 0], t[..., 3]], -1))(y)))


def depth(x: Any) -> Any:
    y = Call(lambda t: tf.nn.space_to_depth(t, 2))(kl.Conv2D(4, 3, padding="same")(x))
    return kl.Conv2D(2, 1)(Call(lambda t: tf.nn.depth_to_space(t, 4))(y))


def upsampled(x: Any) -> Any:
    return kl.Conv2D(2, 1)(kl.Concatenate()([kl.UpSampling2D(2)(kl.MaxPooling2D()(x)), x]))


def unet(x: Any) -> Any:
    """Segmentation: bilinear and learned upsampling beside the path that skips it, a softmax for each pixel."""
    wide = kl.Conv2D(8, 3, padding="same", activation="relu")(x)
    y = kl.Conv2D(8, 3, padding="same", activation="relu")(kl.MaxPooling2D()(wide))
    y = kl.Concatenate()([kl.Conv2DTranspose(8, 3, strides=2, padding="same")(y), wide])
    y = kl.Concatenate()([kl.UpSampling2D(2, interpolation="bilinear")(kl.AveragePooling2D(2)(y)), wide])
    return kl.Conv2D(3, 1, activation="softmax")(y)


def island(x: Any) -> Any:
    return kl.Dense(3)(kl.Flatten()(Call(lambda t: tf.math.cumsum(t, 1))(kl.Conv2D(4, 3)(x))))


IMAGE = (16, 16, 3)
MODELS: dict[str, tuple[tuple[int, ...], Layer]] = {
    "autoencoder": ((640,), autoencoder),
    "regression": ((1,), lambda x: kl.Dense(1)(kl.Dense(16, activation="relu")(x))),
    "resnet": (IMAGE, resnet),
    "separable": ((25, 10, 1), separable),
    "logits": (IMAGE, logits),
    "inverted": (IMAGE, inverted),
    "stream": ((40, 8), stream),
    "dilated": ((9, 8, 3), dilated),
    "rows": ((16, 8), rows),
    "extremes": ((8, 8, 3), extremes),
    "moved": ((8, 8, 3), moved),
    "depth": ((8, 8, 3), depth),
    "upsampled": ((8, 8, 3), upsampled),
    "unet": (IMAGE, unet),
    "island": ((8, 8, 3), island),
}
FLOAT_ENDS, UINT8_ENDS = ("autoencoder", "inverted"), ("resnet", "regression")
INT16 = ("autoencoder", "logits")
"""Converted with int16 activations, and float ends, as well."""
WITHOUT_BATCH = ("dilated", "rows", "upsampled", "stream", "unet")
"""Converted again with a batch of 1 in place of one that may vary."""
REQUANTISED = ("autoencoder", "resnet", "separable", "extremes", "rows", "unet")


def converted(model: Any, mode: str = "int8") -> bytes:
    """What TensorFlow's converter makes of a Keras model; `mode` names types of input and output, or another scheme."""
    shape = tuple(model.input_shape[1:])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if mode == "float":
        return bytes(converter.convert())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    elif mode != "hybrid":
        converter.representative_dataset = lambda: samples(shape)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if mode == "int16":
        wide = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [wide]
    elif mode in ("int8", "uint8"):
        converter.inference_input_type = converter.inference_output_type = getattr(tf, mode)
    return bytes(converter.convert())


def fixed(model: Any) -> Any:
    """The same with a batch of exactly 1."""
    x = kl.Input(batch_shape=(1, *model.input_shape[1:]))
    return keras.Model(x, model(x))


def requantised(data: bytes) -> bytes:
    """A float file in int8 by the ai-edge-quantizer."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe  # type: ignore[import-not-found]

    (key, signature), *_ = Interpreter(model_content=data).get_signature_list().items()
    shape = tuple(Interpreter(model_content=data).get_input_details()[0]["shape"][1:])
    found = quantizer.Quantizer(data)
    found.load_quantization_recipe(recipe.static_wi8_ai8())
    inputs = [{signature["inputs"][0]: sample[0]} for sample in samples(shape)]
    return bytes(found.quantize(found.calibrate({key: inputs})).quantized_model)


def files() -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every file."""
    for name, (shape, body) in MODELS.items():
        model = functional(shape, body)
        yield name, converted(model)
        if name in FLOAT_ENDS:
            yield f"{name}-float-ends", converted(model, "float ends")
        if name in UINT8_ENDS:
            yield f"{name}-uint8-ends", converted(model, "uint8")
        if name in INT16:
            yield f"{name}-int16", converted(model, "int16")
        if name in WITHOUT_BATCH:
            yield f"{name}-fixed", converted(fixed(model))
        if name in REQUANTISED:
            yield f"{name}-quantizer", requantised(converted(model, "float"))
        if name == "separable":
            for mode in ("float", "float16", "hybrid"):
                yield f"{name}-{mode}", converted(model, mode)


if __name__ == "__main__":
    for name, data in files():
        (Path(sys.argv[1]) / f"{name}.tflite").write_bytes(data)
