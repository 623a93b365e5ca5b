"""Inspect data sets: `kmaskrcnn doctor` with the flags that `kmaskrcnn train` takes.

--train_annotations (and --train_images, --val_annotations, ...) name the sets, --report=FILE.html writes a page,
--repair=FOLDER a repaired copy, --write_flagfile=FILE the recipe that train makes from the set. The exit code is 1
where there are errors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from kmaskrcnn.programs import flags

if TYPE_CHECKING:
    from kmaskrcnn.config import Config

REPORT = absl_flags.DEFINE_string("report", "", "HTML page to write; empty: none.")
REPAIR = absl_flags.DEFINE_string("repair", "", "Folder for a repaired copy; empty: none.")
FLAGFILE = absl_flags.DEFINE_string("write_flagfile", "", "Flagfile to write the recipe to; empty: none.")
EXAMPLES = absl_flags.DEFINE_integer("examples", 3, "Examples to print of each defect.", lower_bound=0)

ABOUT = "Inspect a data set: defects, statistics, suggested settings; repair it."
TOPICS = {
    "Data": ["train_annotations", "train_images", "val_annotations", "val_images", "data_format", "class_names"],
    "Output": ["report", "write_flagfile", "repair", "examples"],
}


def main() -> int:
    """Examine the sets that the flags name; exit code 0, 1 where a set has errors, 2 on a wrong setting."""
    config = flags.config_from_flags()
    from kmaskrcnn.data import open_raw
    from kmaskrcnn.data.doctor.examine import examine_pair, usable_labels
    from kmaskrcnn.data.doctor.repair import write_repaired
    from kmaskrcnn.data.doctor.report import report_page
    from kmaskrcnn.data.files import open_outputs
    from kmaskrcnn.data.sets.defects import ERROR
    from kmaskrcnn.errors import counted
    from kmaskrcnn.outputs import split_file
    from kmaskrcnn.programs.automatic import use_own_validation

    written = {}  # a file in the way is told before the work
    for flag in (REPORT, FLAGFILE):
        if flag.value:
            folder, name = split_file(flag.value)
            written[flag.name] = open_outputs(folder, "doctor"), name
            written[flag.name][0].check([name])
    config = use_own_validation(config)
    train_raw = open_raw(config, "train")
    # As in training: names alone get the ids that they have in the training set.
    train, val = examine_pair(train_raw, open_raw(config, "val", usable_labels(train_raw)))
    sets = [("train", train)] + ([("val", val)] if val else [])
    for name, examined in sets:
        images, annotations = counted(examined.counts[0], "image"), counted(examined.counts[1], "annotation")
        print(f"{name}: {examined.source}: {images}, {annotations}")
        print(examined.findings.text(EXAMPLES.value) or "nothing wrong was found")
        images, annotations = counted(len(examined.images), "image"), counted(len(examined.annotations), "annotation")
        print(f"can be kept: {images}, {annotations}")
    names = ("train_annotations", "train_images", "val_annotations", "val_images")
    settings = flags.given_settings()
    place = {name: str(settings[name]) for name in names if settings.get(name)}
    if REPAIR.value:
        place = {}
        for name, examined in sets:
            path = write_repaired(examined, os.path.join(REPAIR.value, name))
            place[f"{name}_annotations"] = path
            print(f"repaired copy: {path}")
    others = {n: v for n, v in settings.items() if n not in names and not (REPAIR.value and n in _OF_READING)}
    given = {**place, **others}
    config, text = _recipe(config.replace(**place), given, on_repaired=bool(REPAIR.value))
    print("suggested flagfile:\n" + "".join(f"  {line}\n" for line in text.splitlines()), end="")
    if FLAGFILE.value:
        outputs, name = written[FLAGFILE.name]
        print(f"flagfile: {outputs.write_text(name, text)}")
    if REPORT.value:
        page = report_page(train, val, config, text.splitlines(), config.train.seed)
        outputs, name = written[REPORT.name]
        print(f"report: {outputs.write_text(name, page)}")
    return 1 if any(examined.findings.number(ERROR) for _, examined in sets) else 0


def _recipe(config: Config, given: Mapping[str, Any], on_repaired: bool) -> tuple[Config, str]:
    """The settings of the recipe and its flagfile; without one, of what was given, where no image can be used."""
    from kmaskrcnn.data import DataError, load_dataset, open_raw
    from kmaskrcnn.data.sets.dataset import dataset_of
    from kmaskrcnn.programs.automatic import recipe_for
    from kmaskrcnn.recipe.recipe import flag_text

    lines = "".join(f"{flag_text(name, value)}\n" for name, value in given.items())
    try:
        if on_repaired:
            train_set = load_dataset(config.data.train_annotations, data_format="coco")
        else:
            train_set = dataset_of(open_raw(config, "train"), "skip")
    except DataError as error:
        return config, f"# no recipe: {str(error).splitlines()[-1]}\n{lines}"
    recipe = recipe_for(config.replace(num_classes=len(train_set.class_names)), given, train_set)
    return recipe.config, recipe.flagfile(given.items())


# A repaired copy has these done already.
_OF_READING = ("data_format", "class_names", "class_map", "on_bad_record")


def program(name: str, arguments: list[str]) -> int:
    """Run with these arguments; returns the exit code."""
    flags.define_config_flags()
    return flags.run(main, name, arguments, ABOUT, TOPICS)
