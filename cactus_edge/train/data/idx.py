"""MNIST and Fashion-MNIST in the original IDX files."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import DataError
from cactus_edge.recipe_sections import DataRecipe
from cactus_edge.train.data.dataset import About, Dataset, Raw, Split, divide
from cactus_edge.train.data.sources import Files, locate


@dataclass(frozen=True)
class Idx:
    """A set in the original IDX files: where from, SHA-256 per file, class names."""

    url: str
    sha256: dict[str, str]
    labels: tuple[str, ...]


FILES = {
    ("train", "x"): "train-images-idx3-ubyte.gz",
    ("train", "y"): "train-labels-idx1-ubyte.gz",
    ("test", "x"): "t10k-images-idx3-ubyte.gz",
    ("test", "y"): "t10k-labels-idx1-ubyte.gz",
}

SETS = {
    "mnist": Idx(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        tuple(str(i) for i in range(10)),
    ),
    "fashion-mnist": Idx(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}


def load(name: str, recipe: DataRecipe) -> Dataset:
    """Pixels / 255, [N, 28, 28, 1]."""
    source = SETS[name]
    files = Files(name, source.sha256, source.url)
    raw = {key: read(locate(files, file), 3 if key[1] == "x" else 1) for key, file in FILES.items()}

    def part(which: str) -> Raw:
        x = raw[which, "x"].astype(np.float32)
        x /= np.float32(255)
        return Raw(x[..., None], raw[which, "y"].astype(np.int64))

    test = part("test")
    return divide(About(name, source.labels, "pixel / 255"), part("train"), Split(test.x, test.y), recipe)


def read(content: bytes, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array in a gzipped IDX file of unsigned bytes: magic 0, 0, 8, dimensions; big-endian uint32 sizes; the bytes."""
    try:
        data = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"not a gzip file: {error}", hint="download it again") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"not an IDX file of {dimensions}-d unsigned bytes: begins with {data[:4].hex()}", hint="download it again"
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", dimensions, 4))
    if len(data) != header + int(np.prod(shape, dtype=np.int64)):
        raise DataError(
            f"an IDX file of shape {shape} needs {int(np.prod(shape)) + header} bytes, got {len(data)}",
            hint="download it again",
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
