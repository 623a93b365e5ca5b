"""Write a data set as TFRecord shards: `kmaskrcnn convert`.

The records are those of the TensorFlow Object Detection API. `instances.json` beside them holds the annotations as they
were and where in the shards each image lies, so that training begins at once and reads single images from anywhere.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import json
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import header_of, read_encoded
from kmaskrcnn.data.readers.coco_json import INSTANCES
from kmaskrcnn.data.readers.tfrecord import RECORD_HEAD, RECORD_TAIL
from kmaskrcnn.data.sets.dataset import CocoDataset
from kmaskrcnn.errors import DataError
from kmaskrcnn.progress import Progress

# Shards of this size are read at full speed from remote storage, and are many enough for parallel work.
_IMAGES_A_SHARD = 1000


def write_shards(
    dataset: CocoDataset,
    output: str,
    name: str = "data",
    shards: int = 0,
    threads: int = 0,
    read: Iterable[str] = (),
) -> list[str]:
    """Write a checked set as shards and `instances.json`.

    Image files are copied as they are; what TensorFlow does not decode (WebP, TIFF, CMYK), or
    EXIF turns, becomes PNG.

    Args:
        dataset: the images and instances.
        output: folder, also behind tf.io.gfile; made if need be.
        name: first part of the files' names.
        shards: number of files; 0: one for each 1000 images.
        threads: shards written at a time; 0: one a processor.
        read: files and folders that the set was read from besides its images; no output replaces them.

    Returns:
        The paths of the shards. The same set gives the same bytes.

    Raises:
        DataError: there are not as many images as shards.
        OutputError: a file is in the way that an earlier conversion did not write.
    """
    count = shards or -(-len(dataset) // _IMAGES_A_SHARD)
    if not 1 <= count <= len(dataset):
        raise DataError(f"shards={shards}: must lie in 1..{len(dataset)}, the set has {len(dataset)} images")
    outputs = files.open_outputs(output, "convert", [*dict.fromkeys(dataset.paths), *read])
    names = [f"{name}-{i:05d}-of-{count:05d}.tfrecord" for i in range(count)]
    outputs.check([*names, INSTANCES])
    tree = dataset.coco_dict
    annotations: dict[int, list[dict]] = {}
    for annotation in tree["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    names_of_classes = {c["id"]: c["name"] for c in tree["categories"]}
    progress = Progress("images written", len(dataset))

    def write(shard: int) -> None:
        offset = 0
        with outputs.file(names[shard]) as path, tf.io.TFRecordWriter(path) as writer:
            for index in range(shard * len(dataset) // count, (shard + 1) * len(dataset) // count):
                image = tree["images"][index]
                encoded, kind = _encoded(dataset, index)
                record = _example(image, encoded, kind, annotations.get(image["id"], []), names_of_classes)
                writer.write(record)
                start = offset + RECORD_HEAD + record.find(encoded)
                image |= {"shard": names[shard], "offset": start, "length": len(encoded), "by_pillow": False}
                offset += RECORD_HEAD + len(record) + RECORD_TAIL
                progress.step()

    with concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for done in [pool.submit(write, shard) for shard in range(count)]:
            done.result()
    progress.clear()
    paths = [outputs.path(name) for name in names]
    sizes = {name: files.size(path) for name, path in zip(names, paths, strict=True)}
    outputs.write_text(INSTANCES, json.dumps({"shards": sizes, **tree}))  # last, so that a folder with it is whole
    return paths


def _encoded(dataset: CocoDataset, index: int) -> tuple[bytes, bytes]:
    """The bytes of an image, and b"jpeg" or b"png"."""
    data = read_encoded(dataset.paths[index], *map(int, dataset.spans[index]))
    if not dataset.by_pillow[index] and header_of(io.BytesIO(data)).orientation == 1:
        return data, b"png" if data.startswith(b"\x89PNG") else b"jpeg"
    buffer = io.BytesIO()  # upright as annotated: not every reader of shards turns images by their EXIF orientation
    Image.fromarray(dataset.image(index)).save(buffer, "PNG")
    return buffer.getvalue(), b"png"


def _example(
    image: dict[str, Any], encoded: bytes, kind: bytes, annotations: list[dict], names: dict[int, str]
) -> bytes:
    """A serialized tf.train.Example of an image in the Object Detection API's terms."""
    height, width = image["height"], image["width"]
    boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) / (width, height, width, height)
    corners = np.clip(corners, 0, 1)
    masks = []
    for annotation in annotations:
        buffer = io.BytesIO()
        Image.fromarray(_decode(annotation["segmentation"], height, width)).save(buffer, "PNG")
        masks.append(buffer.getvalue())
    features = {
        "image/height": [height],
        "image/width": [width],
        "image/filename": [os.path.basename(image["file_name"]).encode()],
        "image/source_id": [str(image["id"]).encode()],
        "image/key/sha256": [hashlib.sha256(encoded).hexdigest().encode()],
        "image/encoded": [encoded],
        "image/format": [kind],
        **{
            f"image/object/bbox/{side}": corners[:, i].tolist()
            for i, side in enumerate(("xmin", "ymin", "xmax", "ymax"))
        },
        "image/object/class/text": [names[a["category_id"]].encode() for a in annotations],
        "image/object/class/label": [a["category_id"] for a in annotations],
        "image/object/is_crowd": [a["iscrowd"] for a in annotations],
        "image/object/area": [float(a["area"]) for a in annotations],
        "image/object/mask": masks,
    }
    example = tf.train.Example(features=tf.train.Features(feature={k: _feature(v) for k, v in features.items()}))
    return example.SerializeToString(deterministic=True)


def _decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(H, W) uint8 of 0 and 1."""
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    return mask_utils.decode(segmentation)


def _feature(values: list) -> tf.train.Feature:
    if values and isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if values and isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
