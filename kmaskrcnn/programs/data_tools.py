"""Tools for data sets: `kmaskrcnn split`, `sample`, `merge` and `convert`."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags as absl_flags

from kmaskrcnn.config import ConfigError, fields
from kmaskrcnn.errors import DataError
from kmaskrcnn.outputs import Outputs, split_file
from kmaskrcnn.programs import flags

FLAGS = absl_flags.FLAGS
_COMMON = {"Data": ["annotations", "images", "data_format", "class_names", "class_map", "on_bad_record"]}


def split(name: str, arguments: list[str]) -> int:
    """`kmaskrcnn split`: write train.json and val.json."""
    _define_set_flags()
    absl_flags.DEFINE_integer("val_images", None, "Number of validation images.", lower_bound=1, required=True)
    absl_flags.DEFINE_enum("to", "coco", ["coco", "yolo"], "Format to write.")
    topics = {**_COMMON, "Output": ["output", "to", "val_images", "seed"]}
    return flags.run(_split, name, arguments, "Split a data set into a training and a validation set.", topics)


def _split() -> None:
    from kmaskrcnn.data.sets.subsets import split_coco, tree_of, write_tree

    if FLAGS.to == "yolo":
        _split_as_yolo()
        return
    names = ("train.json", "val.json")
    outputs = _outputs("split", FLAGS.output, names)
    tree = tree_of(_read_set(), outputs.folder, FLAGS.on_bad_record)
    for name, part in zip(names, split_coco(tree, FLAGS.val_images, FLAGS.seed), strict=True):
        write_tree(outputs, name, part)


def _split_as_yolo() -> None:
    from kmaskrcnn.data.readers.write_yolo import write_yolo
    from kmaskrcnn.data.sets.dataset import dataset_of
    from kmaskrcnn.data.sets.subsets import split_coco, with_records

    raw = _read_set()
    whole = dataset_of(raw, FLAGS.on_bad_record)  # names what is wrong in the whole set
    whole.summary()
    usable = set(whole.image_ids.tolist())
    tree = {
        "images": [i for i in raw.images if isinstance(i, dict) and i.get("id") in usable],
        "annotations": [a for a in raw.annotations if isinstance(a, dict) and a.get("image_id") in usable],
        "categories": raw.categories,
    }
    parts = zip(("train", "val"), split_coco(tree, FLAGS.val_images, FLAGS.seed), strict=True)
    path = write_yolo(
        {name: dataset_of(with_records(raw, part), FLAGS.on_bad_record) for name, part in parts},
        FLAGS.output,
        [FLAGS.annotations],
    )
    print(f"train with --train_annotations={path} --val_annotations={path}")


def sample(name: str, arguments: list[str]) -> int:
    """`kmaskrcnn sample`: write a subset as a COCO JSON."""
    _define_set_flags()
    absl_flags.DEFINE_integer("count", None, "Images to draw.", lower_bound=1, required=True)
    absl_flags.DEFINE_integer("each_class", 0, "At least this many images of each class, if there are that many.")
    topics = {**_COMMON, "Output": ["output", "count", "each_class", "seed"]}
    return flags.run(_sample, name, arguments, "Draw a subset of a data set.", topics)


def _sample() -> None:
    from kmaskrcnn.data.sets.subsets import sample_coco, tree_of, write_tree

    folder, name = split_file(FLAGS.output)
    outputs = _outputs("sample", folder, [name])
    tree = tree_of(_read_set(), outputs.folder, FLAGS.on_bad_record)
    try:
        part = sample_coco(tree, FLAGS.count, FLAGS.seed, FLAGS.each_class)
    except DataError as error:
        raise DataError(f"{FLAGS.annotations}: {error}") from None
    write_tree(outputs, name, part)


def merge(name: str, arguments: list[str]) -> int:
    """`kmaskrcnn merge`: write several sets as one COCO JSON whose file names start from its own folder."""
    _define_set_flags()
    absl_flags.DEFINE_multi_string("with", None, "Another data set; may be repeated.", required=True)
    absl_flags.DEFINE_multi_string("with_images", [], "Image folder of each --with, in the same order.")
    topics = {**_COMMON, "Further sets": ["with", "with_images"], "Output": ["output"]}
    return flags.run(_merge, name, arguments, "Merge data sets.", topics)


def _merge() -> None:
    from kmaskrcnn.data.sets.dataset import dataset_of
    from kmaskrcnn.data.sets.subsets import merge_coco, write_tree

    others, folders = FLAGS["with"].value, FLAGS.with_images or [""] * len(FLAGS["with"].value)
    if len(folders) != len(others):
        raise ConfigError(f"--with_images is given {len(folders)} times, --with {len(others)} times")
    folder, name = split_file(FLAGS.output)
    outputs = _outputs("merge", folder, [name], others)
    raws = [_read_set(), *(_read_set(*pair) for pair in zip(others, folders, strict=True))]
    datasets = [dataset_of(raw, FLAGS.on_bad_record) for raw in raws]
    write_tree(outputs, name, merge_coco(datasets, outputs.folder))


def convert(name: str, arguments: list[str]) -> int:
    """`kmaskrcnn convert`: write TFRecord shards, or a YOLO set."""
    _define_set_flags()
    absl_flags.DEFINE_enum("to", "tfrecord", ["tfrecord", "yolo"], "Format to write.")
    absl_flags.DEFINE_string("name", "data", "Prefix of the shards' file names.")
    absl_flags.DEFINE_integer("shards", 0, "Number of shards; 0: one for each 1000 images.")
    absl_flags.DEFINE_integer("threads", 0, "Shards to write in parallel; 0: one per CPU core.")
    topics = {**_COMMON, "Output": ["output", "to", "name", "shards", "threads"]}
    return flags.run(_convert, name, arguments, "Convert a data set to TFRecord shards or a YOLO set.", topics)


def _convert() -> None:
    from kmaskrcnn.data import files
    from kmaskrcnn.data.readers.write_tfrecord import write_shards
    from kmaskrcnn.data.readers.write_yolo import write_yolo
    from kmaskrcnn.data.sets.dataset import dataset_of

    dataset = dataset_of(_read_set(), FLAGS.on_bad_record)
    dataset.summary()
    if FLAGS.to == "yolo":
        path = write_yolo({"train": dataset}, FLAGS.output, [FLAGS.annotations])
        print(f"train with --train_annotations={path}")
        return
    paths = write_shards(dataset, FLAGS.output, FLAGS.name, FLAGS.shards, FLAGS.threads, [FLAGS.annotations])
    megabytes = sum(map(files.size, paths)) / 1e6
    print(f"{len(paths)} shards, {megabytes:.0f} MB together; train with --train_annotations={FLAGS.output}")


def _define_set_flags() -> None:
    """The flags that name a data set and the output."""
    define, formats = absl_flags, list(fields()["data_format"][0].metadata["choices"])
    define.DEFINE_string("annotations", None, "The set: COCO JSON, or another format.", required=True)
    define.DEFINE_string("images", "", "Folder of its images; empty: where the format has them.")
    define.DEFINE_enum("data_format", "auto", formats, "Format of the set; auto detects it.")
    define.DEFINE_list("class_names", [], "Names of the classes in order, or a file of them.")
    define.DEFINE_list("class_map", [], "OLD=NEW,... or a file of such lines: renames and merges classes.")
    define.DEFINE_enum(
        "on_bad_record", "error", ["error", "skip"], "Stop at bad records (error) or leave them out (skip)."
    )
    define.DEFINE_string("output", None, "Folder or file to write.", required=True)
    define.DEFINE_integer("seed", 0, "Random seed; the same seed draws the same images.")


def _outputs(program: str, folder: str, names: Sequence[str], read: Sequence[str] = ()) -> Outputs:
    """Where a program writes, with these files seen to be free before the work."""
    from kmaskrcnn.data.files import open_outputs

    outputs = open_outputs(folder, program, [FLAGS.annotations, *read])
    outputs.check(names)
    return outputs


def _read_set(path: str | None = None, images_dir: str | None = None):
    """The set that the flags name, or another one with the same settings, not checked yet."""
    from kmaskrcnn.data.readers import read_raw
    from kmaskrcnn.data.sets.class_names import parse_class_map, parse_class_names

    return read_raw(
        path or FLAGS.annotations,
        FLAGS.images if images_dir is None else images_dir,
        FLAGS.data_format,
        parse_class_names(FLAGS.class_names),
        parse_class_map(FLAGS.class_map),
        given_as="--images" if images_dir is None else "--with_images",
    )
