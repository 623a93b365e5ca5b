"""Makes hostile annotation files, a function of their numbers: known kinds first, then random damage of sound ones."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
SQUARE = [8, 8, 24, 8, 24, 24, 8, 24]


def nested(depth: int) -> Any:
    """Lists in lists, as a text that is put into the file as it is."""
    return _Text("[" * depth + "]" * depth)


class _Text:
    """JSON that is written as it is."""

    def __init__(self, text: str):
        self.text = text


VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 0.5, -0.0, 1e7, 1e8, 1e18, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**32,
    2**62, 2**63, 2**64, 2**100, 10**399, "", " ", "17", "64.0", "x" * 100_000, "a\0b", "\ud800", "a\nb\u202e",
    "../" * 200, "/dev/zero", "fifo", "folder", "/proc/self/mem", "n" * 300, [], {}, [[]], [[[]]], [None] * 3,
    [1, 2, 3], [[0, 0, 1e8, 0, 1e8, 1e8]], [[0, 0, 10, 0, 10, 1e9]], [SQUARE] * 2000, list(range(100_000)),
    {"size": [HEIGHT, WIDTH], "counts": [2**62, 2**62, 2**62, 2**62]}, {"size": [HEIGHT, WIDTH], "counts": "o" * 9999},
    {"size": [2**31, 2**31], "counts": [2**62]}, {"size": None, "counts": {}}, {"a": {"b": []}},
    _Text("[" * 900 + "]" * 900), _Text("[" * 1500 + "]" * 1500), _Text("[" * 100_000), _Text("9" * 5000),
    _Text("1e99999"), _Text("-"), _Text('{"a":' * 2000 + "1" + "}" * 2000),
]  # fmt: skip


def _image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[8:24, 8:24] = 200
    Image.fromarray(pixels).save(path)


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[8:24, 8:24] = 1
    return mask


def _coco() -> dict:
    def annotation(number: int, image: int, segmentation: Any) -> dict:
        box = {"bbox": [8, 8, 16, 16], "area": 256, "iscrowd": 0}
        return {"id": number, "image_id": image, "category_id": 1, "segmentation": segmentation, **box}

    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], _mask().T.reshape(-1), [2]])))).tolist()
    images = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2)]
    rle = {"size": [HEIGHT, WIDTH], "counts": runs}
    return {
        "images": images,
        "annotations": [annotation(1, 1, [SQUARE]), annotation(2, 2, rle), annotation(3, 1, [SQUARE, SQUARE])],
        "categories": [{"id": 1, "name": "thing"}, {"id": 2, "name": "other"}],
    }


def _labelme() -> dict:
    points = [[8, 8], [24, 8], [24, 24], [8, 24]]
    shapes = [
        {"label": "a", "points": points, "group_id": 1, "shape_type": "polygon", "flags": {}},
        {"label": "a", "points": points[::2], "group_id": 1, "shape_type": "rectangle", "flags": {}},
        {"label": "b", "points": points[:2], "group_id": None, "shape_type": "circle", "flags": {}},
        {"label": "b", "points": [[8, 8], [23, 23]], "group_id": None, "shape_type": "mask", "flags": {}},
    ]
    shapes[3]["mask"] = base64.b64encode(_png(np.full((16, 16), 255, np.uint8))).decode()
    data = base64.b64encode(_png(np.zeros((HEIGHT, WIDTH, 3), np.uint8))).decode()
    return {"shapes": shapes, "imagePath": "gone.png", "imageData": data, "imageHeight": HEIGHT, "imageWidth": WIDTH}


def _via() -> dict:
    shapes = [
        {"name": "polygon", "all_points_x": [8, 24, 24, 8], "all_points_y": [8, 8, 24, 24]},
        {"name": "rect", "x": 8, "y": 8, "width": 16, "height": 16},
        {"name": "ellipse", "cx": 20, "cy": 20, "rx": 8, "ry": 4, "theta": 0.3},
    ]
    regions = [{"shape_attributes": shape, "region_attributes": {"class": "cat"}} for shape in shapes]
    return {"1.png9": {"filename": "1.png", "size": 9, "regions": regions, "file_attributes": {}}}


def _dump(tree: Any) -> str:
    texts: list[str] = []

    def mark(value: Any) -> str:
        texts.append(value.text)
        return f"@@{len(texts) - 1}@@"

    text = json.dumps(tree, default=mark)
    for i, part in enumerate(texts):
        text = text.replace(f'"@@{i}@@"', part)
    return text


def _places(tree: Any, path: tuple = ()) -> list[tuple]:
    found = [path] if path else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += _places(value, (*path, key))
    return found


def _changed(tree: Any, path: tuple, value: Any) -> Any:
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree


def _json_damage(tree: Any, rng: np.random.Generator) -> tuple[bytes, str]:
    """A sound tree with a part replaced, or its text with bytes changed."""
    if rng.random() < 0.75:
        places = _places(tree)
        path, value = places[rng.integers(len(places))], VALUES[rng.integers(len(VALUES))]
        shown = value.text if isinstance(value, _Text) else repr(value)
        return _dump(_changed(tree, path, value)).encode(), f"{path} = {shown[:40]}"
    return _byte_damage(_dump(tree).encode(), rng)


def _byte_damage(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    kind = int(rng.integers(6))
    if kind == 0:
        return data[: rng.integers(len(data))], "cut short"
    if kind == 1:
        return data.decode("latin-1").encode("utf-16"), "UTF-16"
    if kind == 2:
        return b"\xef\xbb\xbf" + data + b"\0" * 1000, "BOM and zeros"
    if kind == 3:
        return bytes(rng.integers(0, 256, 3000, np.uint8)), "random bytes"
    if kind == 4:
        place = int(rng.integers(len(data)))
        return data[:place] + data[place:] * 3, "parts repeated"
    array = np.frombuffer(data, np.uint8).copy()
    array[rng.integers(len(array), size=8)] = rng.integers(0, 256, 8)
    return array.tobytes(), "8 bytes changed"


# Forms: each writes a set into a folder and returns the path to read and what was done.


def _make_coco(folder: Path, rng: np.random.Generator) -> tuple[Path, str]:
    for i in (1, 2):
        _image(folder / f"{i}.png")
    data, what = _json_damage(_coco(), rng)
    (folder / "a.json").write_bytes(data)
    return folder / "a.json", what


def _make_labelme(folder: Path, rng: np.random.Generator) -> tuple[Path, str]:
    tree = _labelme()
    (folder / "sound.json").write_text(json.dumps(tree))
    data, what = _json_damage(tree, rng)
    (folder / "x.json").write_bytes(data)
    return folder, what


def _make_via(folder: Path, rng: np.random.Generator) -> tuple[Path, str]:
    _image(folder / "1.png")
    if rng.random() < 0.7:
        data, what = _json_damage(_via(), rng)
        (folder / "via.json").write_bytes(data)
        return folder / "via.json", what
    rows = ["filename,file_size,region_count,region_id,region_shape_attributes,region_attributes"]
    for i, region in enumerate(_via()["1.png9"]["regions"]):
        place = tuple(region["shape_attributes"])[rng.integers(len(region["shape_attributes"]))]
        shape = {**region["shape_attributes"], place: VALUES[rng.integers(len(VALUES))]}
        cells = [_dump(part).replace('"', '""') for part in (shape, region["region_attributes"])]
        rows.append(f'1.png,9,3,{i},"{cells[0]}","{cells[1]}"')
    data, what = "\n".join(rows).encode(), "values changed"
    if rng.random() < 0.4:
        data, what = _byte_damage(data, rng)
    (folder / "via.csv").write_bytes(data)
    return folder / "via.csv", f"CSV: {what}"


_XML = (
    '<?xml version="1.0"{encoding}?>{before}<annotation><object><name>{name}</name><difficult>0</difficult></object>'
    "{after}</annotation>"
)
_XML_KINDS: list[dict[str, str]] = [
    {"encoding": ' encoding="utf-99"'},
    {"encoding": ' encoding="big5"'},
    {"encoding": ' encoding="utf-16"'},
    {"encoding": ' encoding="hz"'},
    {"encoding": ' encoding="rot13"'},
    {"before": '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>', "name": "&e;"},
    {"before": "<!DOCTYPE a [" + '<!ENTITY a0 "aaaaaaaaaa">' + "".join(
        f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12)) + "]>", "name": "&a11;"},
    {"after": "<a>" * 5000},
    {"after": "<a>" * 100_000 + "</a>" * 100_000},
    {"name": "x" * 1_000_000},
    {"name": "&#xD800;"},
    {"name": ""},
    {"after": "<object/>" * 20_000},
]  # fmt: skip


def _make_voc(folder: Path, rng: np.random.Generator) -> tuple[Path, str]:
    _image(folder / "JPEGImages" / "1.jpg")
    for name in ("Annotations", "SegmentationObject"):
        (folder / name).mkdir()
    kind = _XML_KINDS[rng.integers(len(_XML_KINDS))] if rng.random() < 0.6 else {}
    xml = _XML.format(**{"encoding": "", "before": "", "name": "cat", "after": "", **kind}).encode()
    what = str(kind)[:60]
    if not kind:
        xml, what = _byte_damage(xml, rng)
    (folder / "Annotations" / "1.xml").write_bytes(xml)
    mask = _png(_mask())
    if rng.random() < 0.3:
        mask, damage = _byte_damage(mask, rng)
        what += f", mask: {damage}"
    (folder / "SegmentationObject" / "1.png").write_bytes(mask)
    return folder, what


def _make_masks(folder: Path, rng: np.random.Generator) -> tuple[Path, str]:
    _image(folder / "images" / "1.png")
    _image(folder / "images" / "2.png")
    (folder / "masks").mkdir()
    (folder / "masks" / "2.png").write_bytes(_png(_mask()))
    path, kind = folder / "masks" / "1.png", int(rng.integers(9))
    noise = rng.integers(0, 2**16, (HEIGHT, WIDTH))
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to("/dev/zero")
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        path.write_bytes(_png_bomb(60_000, 60_000))
    elif kind == 4:
        Image.fromarray(noise.astype(np.uint16)).save(path)
    elif kind == 5:
        Image.fromarray((noise / 7).astype(np.float32)).save(path.with_suffix(".tif"))
    elif kind == 6:
        Image.fromarray((noise - 40_000).astype(np.int32)).save(path.with_suffix(".tif"))
    elif kind == 7:
        path.symlink_to(path)
    else:
        data, what = _byte_damage(_png(_mask()), rng)
        path.write_bytes(data)
        return folder, f"mask: {what}"
    return folder, f"mask of kind {kind}"


def _png_bomb(width: int, height: int) -> bytes:
    """A PNG that states a size and holds next to nothing."""
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _make_tfrecord(folder: Path, rng: np.random.Generator) -> tuple[Path, str]:
    import tensorflow as tf

    def feature(values: list) -> tf.train.Feature:
        if values and isinstance(values[0], bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        if values and isinstance(values[0], float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    good: dict[str, list] = {
        "image/height": [HEIGHT],
        "image/width": [WIDTH],
        "image/filename": [b"1.png"],
        "image/source_id": [b"1"],
        "image/encoded": [_png(np.zeros((HEIGHT, WIDTH, 3), np.uint8))],
        "image/object/bbox/ymin": [8 / HEIGHT],
        "image/object/bbox/xmin": [8 / WIDTH],
        "image/object/bbox/ymax": [24 / HEIGHT],
        "image/object/bbox/xmax": [24 / WIDTH],
        "image/object/class/text": [b"cat"],
        "image/object/class/label": [1],
        "image/object/is_crowd": [0],
        "image/object/area": [256.0],
        "image/object/mask": [_png(_mask())],
    }
    odd: list[list] = [
        [], [-1], [0], [2**62], [1.5], [float("nan")], [float("inf")], [1e38], [b""], [b"x"], [b"\xff\xfe"],
        [b"9" * 500], [1] * 1000, [1.0] * (HEIGHT * WIDTH), [_png_bomb(50_000, 50_000)], [_png(_mask())[:50]],
    ]  # fmt: skip
    name = list(good)[rng.integers(len(good))]
    value = odd[rng.integers(len(odd))]
    what = f"{name} = {str(value)[:40]}"
    records = []
    for features in (good, {**good, name: value}):
        example = tf.train.Example(features=tf.train.Features(feature={k: feature(v) for k, v in features.items()}))
        records.append(example.SerializeToString())
    path = folder / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    if rng.random() < 0.3:
        data, damage = _byte_damage(path.read_bytes(), rng)
        path.write_bytes(data)
        what = damage
    elif rng.random() < 0.15:
        length = struct.pack("<Q", 2 ** int(rng.integers(20, 63)))
        path.write_bytes(path.read_bytes() + length + struct.pack("<I", _masked_crc(length)) + b"x" * 100)
        what = "a record that states a length beyond the file"
    return path, what


def _masked_crc(data: bytes) -> int:
    """The CRC-32C of a TFRecord's length, as TensorFlow masks it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


_FORMS: list[tuple[str, Callable]] = [
    ("coco", _make_coco),
    ("labelme", _make_labelme),
    ("coco", _make_coco),
    ("via", _make_via),
    ("voc", _make_voc),
    ("coco", _make_coco),
    ("masks", _make_masks),
    ("tfrecord", _make_tfrecord),
    ("labelme", _make_labelme),
]


def make(folder: Path, number: int) -> tuple[str, str]:
    """Write the file of a number into a new folder; returns the path to read and what was done."""
    folder.mkdir(parents=True)
    name, form = _FORMS[number % len(_FORMS)]
    round_ = number // len(_FORMS)
    if name == "coco" and (special := _special(number, round_)) is not None:
        for i in (1, 2):
            _image(folder / f"{i}.png")
        path, what = folder / "a.json", special[1]
        path.write_text(_dump(special[0]))
    else:
        path, what = form(folder, np.random.default_rng(number))
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    return str(path), f"{name}: {what}"


def _special(number: int, round_: int) -> tuple[Any, str] | None:
    """Every value once in each of the fields that matter most, before the random damage begins."""
    fields = [
        ("annotations", 0, "segmentation"),
        ("annotations", 0, "segmentation", 0, 2),
        ("annotations", 0, "bbox"),
        ("images", 0, "file_name"),
    ]
    position = round_ * 3 + (0, 0, 1, 1, 1, 2, 2, 2, 2)[number % len(_FORMS)]
    field, value = divmod(position, len(VALUES))
    if field >= len(fields):
        return None
    shown = VALUES[value].text if isinstance(VALUES[value], _Text) else repr(VALUES[value])
    return _changed(_coco(), fields[field], VALUES[value]), f"{fields[field]} = {shown[:40]}"
