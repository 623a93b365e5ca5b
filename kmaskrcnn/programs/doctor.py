"""Inspect data sets: `kmaskrcnn doctor` with the flags that `kmaskrcnn train` takes.

--train_annotations (and --train_images, --val_annotations, ...) name the sets, --report=FILE.html writes a page,
--repair=FOLDER a repaired copy. The exit code is 1 where there are errors.
"""

from __future__ import annotations

import os

from absl import flags as absl_flags

from kmaskrcnn.programs import flags

REPORT = absl_flags.DEFINE_string("report", "", "HTML page to write; empty: none.")
REPAIR = absl_flags.DEFINE_string("repair", "", "Folder for a repaired copy; empty: none.")
EXAMPLES = absl_flags.DEFINE_integer("examples", 3, "Examples of each defect that are printed.", lower_bound=0)

ABOUT = "Inspect a data set: defects, statistics, suggested settings; repair it."
TOPICS = {
    "Data": ["train_annotations", "train_images", "val_annotations", "val_images", "data_format", "class_names"],
    "Output": ["report", "repair", "examples"],
}


def main() -> int:
    """Examine the sets that the flags name; exit code 0, 1 where a set has errors, 2 on a wrong setting."""
    config = flags.config_from_flags()
    from kmaskrcnn.data import open_raw
    from kmaskrcnn.data.doctor.defects import ERROR
    from kmaskrcnn.data.doctor.examine import examine_pair
    from kmaskrcnn.data.doctor.repair import write_repaired
    from kmaskrcnn.data.doctor.report import flagfile, report_page, write_report

    train, val = examine_pair(open_raw(config, "train"), open_raw(config, "val"))
    sets = [("train", train)] + ([("val", val)] if val else [])
    for name, examined in sets:
        print(f"{name}: {examined.source}: {examined.counts[0]} images, {examined.counts[1]} annotations")
        print(examined.findings.text(EXAMPLES.value) or "nothing wrong was found")
        print(f"can be kept: {len(examined.images)} images, {len(examined.annotations)} annotations")
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
    given = [f"--{n}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for n, v in {**place, **others}.items()]
    lines = flagfile(train, config, given)
    print("suggested flagfile:\n" + "\n".join(f"  {line}" for line in lines))
    if REPORT.value:
        write_report(REPORT.value, report_page(train, val, config, lines, config.train.seed))
        print(f"report: {REPORT.value}")
    return 1 if any(examined.findings.number(ERROR) for _, examined in sets) else 0


# A repaired copy has these done already.
_OF_READING = ("data_format", "class_names", "class_map", "on_bad_record")


def program(name: str, arguments: list[str]) -> int:
    """Run with these arguments; returns the exit code."""
    flags.define_config_flags()
    return flags.run(main, name, arguments, ABOUT, TOPICS)
