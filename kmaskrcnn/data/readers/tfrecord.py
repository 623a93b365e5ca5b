"""TFRecord shards of tf.train.Example as the TensorFlow Object Detection API writes them, with instance masks."""

from __future__ import annotations

import concurrent.futures
import fnmatch
import io
import os
import re
from typing import Any

import numpy as np
import tensorflow as tf

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import ImageError, header_of, open_image
from kmaskrcnn.data.sets.defects import Finding
from kmaskrcnn.data.sets.raw_set import RawSet, encode_mask
from kmaskrcnn.errors import DataError, Flaw
from kmaskrcnn.progress import Progress

_PATTERNS = ("*.tfrecord", "*.tfrecords", "*.tfrecord-*", "*.tfrecords-*", "*.record", "*.record-*")
# A record is its length, a checksum of that (8 + 4 bytes), the data and a checksum of it (4 bytes).
RECORD_HEAD, RECORD_TAIL = 12, 4


def shard_paths(path: str) -> list[str]:
    """The shards that a path names in order: a file, a folder of them, a pattern with * or ?, or NAME@COUNT."""
    if match := re.fullmatch(r"(.+)@(\d+)", path):
        count = int(match.group(2))
        return [f"{match.group(1)}-{i:05d}-of-{count:05d}" for i in range(count)]
    if "*" in path or "?" in path:
        return sorted(tf.io.gfile.glob(path))
    if files.is_folder(path):
        return [os.path.join(path, name) for name in files.matching(path, *_PATTERNS)]
    return [path]


def is_shards(path: str) -> bool:
    """Whether a path names TFRecord shards."""
    name = os.path.basename(path).lower()
    if re.fullmatch(r".+@\d+", name) or any(fnmatch.fnmatch(name, pattern) for pattern in _PATTERNS):
        return True
    if files.is_folder(path):
        return bool(files.matching(path, *_PATTERNS))
    return ("*" in name or "?" in name) and any(is_shards(shard) for shard in shard_paths(path)[:1])


def read_tfrecord(path: str, images_dir: str = "") -> RawSet:
    """Read every record of the shards once; images are read again from where they lie, one by one, in training.

    Needs 'image/encoded' and 'image/object/...': 'bbox/{ymin,xmin,ymax,xmax}' (shares of the sides), 'class/label' or
    'class/text', and 'mask', PNGs or one list of numbers. 'is_crowd', 'area', 'image/source_id' and 'image/filename'
    are taken where they are there. A folder with the `instances.json` of `write_tfrecord` is read by that file,
    which takes seconds.
    """
    shards = shard_paths(path)
    if not shards:
        raise DataError(f"{path}: no such TFRecord files")
    progress = Progress(f"shards of {path} read", len(shards))
    parts = []
    with concurrent.futures.ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        for part in pool.map(_read_shard, shards):
            parts.append(part)
            progress.step()
    progress.clear()
    raw = RawSet(path, images_dir, [], [], [], [], [])
    raw.named = not any(label for part in parts for *_, label in part.instances)
    _join(raw, parts)
    return raw


class _Shard:
    """Records of one shard: images and instances in order, with the words that name them."""

    def __init__(self) -> None:
        self.images: list[tuple[dict, str]] = []
        # (position of the image, annotation, place, class name, class label)
        self.instances: list[tuple[int, dict, str, str, int]] = []
        self.problems: list[Finding] = []


def _read_shard(path: str) -> _Shard:
    shard, offset = _Shard(), 0
    try:
        whole, size = _whole_records(path)
        for number, record in enumerate(tf.data.TFRecordDataset(path).take(whole).as_numpy_iterator()):
            _read_record(shard, path, number, offset, record)
            offset += RECORD_HEAD + len(record) + RECORD_TAIL
        damage = f"{size} bytes there" if offset < size else ""
    except FileNotFoundError:
        raise DataError(f"{path}: no such TFRecord file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    except tf.errors.OpError as error:
        damage = error.message.splitlines()[0]
    if damage:
        kind = "damaged or cut short" if offset else "not a TFRecord file, or a compressed one"
        what = f"{kind} after byte {offset} ({damage})"
        shard.problems.append(Finding("truncated-image", os.path.basename(path), what))
    return shard


def _whole_records(path: str) -> tuple[int, int]:
    """Records by their stated lengths that lie in a file, and its bytes: a length past its end is not to be trusted."""
    with files.open_binary(path) as file:
        size, offset, count = file.seek(0, os.SEEK_END) or file.tell(), 0, 0
        while offset + RECORD_HEAD + RECORD_TAIL <= size:
            file.seek(offset)
            offset += RECORD_HEAD + int.from_bytes(file.read(8), "little") + RECORD_TAIL
            count += offset <= size
    return count, size


def _read_record(shard: _Shard, path: str, number: int, offset: int, record: bytes) -> None:
    place = f"{os.path.basename(path)}: record {number}"
    try:
        example = tf.train.Example.FromString(record)
    except Exception as error:  # the protobuf library's own, whose class differs between its versions
        shard.problems.append(Finding("bad-image-record", place, f"not a tf.train.Example ({error})"))
        return
    features = _Features({name: _values(feature) for name, feature in example.features.feature.items()})
    try:
        encoded = features.first("image/encoded", bytes, b"")
        if not encoded:
            raise Flaw("bad-image-record", "no 'image/encoded'")
        header = header_of(io.BytesIO(encoded))
        height, width = (features.first(f"image/{name}", int, 0) for name in ("height", "width"))
        size = (height, width) if height or width else header.upright
        turn = header.turn_for(*size)
        if turn is None:
            detail = f"the image has {header.width} x {header.height}, the record {size[1]} x {size[0]}"
            raise Flaw("image-size-differs", detail)
        source, name = (features.first(f"image/{key}", bytes, b"") for key in ("source_id", "filename"))
    except ImageError as error:
        shard.problems.append(Finding(error.code, place, str(error)))
        return
    except Flaw as flaw:
        shard.problems.append(Finding(flaw.code, place, str(flaw)))
        return
    image = {
        "source": source.decode(errors="replace"),
        "file_name": name.decode(errors="replace") or f"{os.path.basename(path)}-{number}",
        "height": size[0],
        "width": size[1],
        "shard": path,
        "offset": offset + RECORD_HEAD + record.find(encoded),
        "length": len(encoded),
        "by_pillow": header.by_pillow,
        "turn": turn,
    }
    shard.images.append((image, place))
    try:
        _read_objects(shard, features, place, *size)
    except Flaw as flaw:
        shard.problems.append(Finding(flaw.code, place, str(flaw)))


class _Features(dict):
    """Values of a tf.train.Example by name."""

    def column(self, name: str, kind: type | tuple[type, ...]) -> list:
        """All values of a feature; raises Flaw where they are of another kind."""
        values = list(self.get(name, []))
        if values and not isinstance(values[0], kind):
            raise Flaw("bad-image-record", f"'{name}' holds {type(values[0]).__name__} values")
        return values

    def first(self, name: str, kind: type, default: Any) -> Any:
        """The first value of a feature."""
        return next(iter(self.column(name, kind)), default)


def _values(feature: tf.train.Feature) -> Any:
    kind = feature.WhichOneof("kind")
    return getattr(feature, kind).value if kind else []


def _read_objects(shard: _Shard, features: _Features, place: str, height: int, width: int) -> None:
    """Take the objects of a record; raises Flaw where its lists do not agree."""
    corners = [features.column(f"image/object/bbox/{side}", float) for side in ("ymin", "xmin", "ymax", "xmax")]
    count = len(corners[0])
    names = [text.decode(errors="replace").strip() for text in features.column("image/object/class/text", bytes)]
    labels, crowd = (features.column(f"image/object/{name}", int) for name in ("class/label", "is_crowd"))
    areas = features.column("image/object/area", (float, int))
    masks: Any = features.get("image/object/mask", [])
    numeric = len(masks) > 0 and not isinstance(masks[0], bytes)
    if numeric:
        if len(masks) != count * height * width:
            detail = f"{count} boxes of {height} x {width} pixels, but {len(masks)} numbers in 'image/object/mask'"
            raise Flaw("bad-annotation-record", detail)
        masks = np.asarray(masks).reshape(count, height, width)
    if not count and not labels and not names:
        return
    for what, values in (("class/label or class/text", labels or names), ("mask", masks)):
        if len(values) != count:
            detail = f"{count} boxes, but {len(values)} values in 'image/object/{what}'"
            raise Flaw("bad-annotation-record", detail)
    for what, values in (("the box's sides", corners[1] + corners[2] + corners[3]), ("is_crowd", crowd * 3)):
        if values and len(values) != 3 * count:
            raise Flaw("bad-annotation-record", f"{count} boxes, but {len(values) / 3:g} values of {what}")
    names = names if len(names) == count else []
    image = len(shard.images) - 1
    for i in range(count):
        # Shares in float32 come back as 39.999998: three decimals are what they hold.
        sides = (round(float(c[i]) * side, 3) for c, side in zip(corners, (height, width) * 2, strict=True))
        y0, x0, y1, x1 = sides
        try:
            mask = masks[i] if numeric else _decode_mask(masks[i], height, width)
        except Flaw as flaw:
            shard.problems.append(Finding(flaw.code, f"{place}: object {i}", str(flaw)))
            continue
        annotation = {"iscrowd": int(crowd[i]) if crowd else 0, "segmentation": encode_mask(mask > 0)}
        annotation["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        if i < len(areas):
            annotation["area"] = float(areas[i])
        name, label = (names[i] if names else ""), (int(labels[i]) if labels else 0)
        shard.instances.append((image, annotation, f"{place}: object {i}", name, label))


def _decode_mask(png: bytes, height: int, width: int) -> np.ndarray:
    try:
        with open_image(io.BytesIO(png)) as image:
            if image.size != (width, height):
                sizes = f"{image.width} x {image.height}, the image {width} x {height}"
                raise Flaw("unreadable-record", f"the mask has {sizes}")
            return np.asarray(image.convert("L") if image.mode not in ("L", "1", "I", "I;16") else image)
    except ImageError as error:
        raise Flaw("unreadable-record", f"the mask is not a PNG ({error})") from None


def _join(raw: RawSet, shards: list[_Shard]) -> None:
    """Number images, instances and classes over all shards."""
    images = [image for shard in shards for image, _ in shard.images]
    # The ids of the set that was written, as far as they are numbers and differ.
    sources = [image.pop("source") for image in images]
    own = [int(s) if s.isascii() and s.isdecimal() and len(s) < 19 else -1 for s in sources]
    numbers = own if -1 not in own and len(set(own)) == len(own) else range(1, len(images) + 1)
    raw.images = [{"id": number, **image} for number, image in zip(numbers, images, strict=True)]
    raw.image_places = [place for shard in shards for _, place in shard.images]
    raw.problems = [problem for shard in shards for problem in shard.problems]
    texts = sorted({name for shard in shards for *_, name, _ in shard.instances})
    classes: dict[int, str] = dict(enumerate(texts, 1)) if raw.named else {}
    number_by_name = {name: i for i, name in classes.items()}
    first = 0
    for shard in shards:
        for image, annotation, place, name, label in shard.instances:
            number = number_by_name[name] if raw.named else label
            if not raw.named:
                known = classes.setdefault(label, name or f"class {label}")
                if name and known != name:
                    detail = f"class {label} is {name!r} here and {known!r} before"
                    raw.problems.append(Finding("unknown-category", place, detail))
                    continue
            image_id = raw.images[first + image]["id"]
            links = {"id": len(raw.annotations) + 1, "image_id": image_id, "category_id": number}
            raw.annotations.append({**links, **annotation})
            raw.annotation_places.append(place)
        first += len(shard.images)
    raw.categories = [{"id": number, "name": name} for number, name in sorted(classes.items())]
