"""COCO's 80 object categories, whose ids run to 90 with gaps, and the labels of published models."""

from __future__ import annotations

from collections.abc import Sequence

from kmaskrcnn.errors import WeightsError
from kmaskrcnn.results.labels import Labels

# The categories 1..90 in order, as in instances_val2017.json; "-" is an id that no category has.
_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, -, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, -, backpack, umbrella, "
    "-, -, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
    "skateboard, surfboard, tennis racket, bottle, -, wine glass, cup, fork, knife, spoon, bowl, banana, apple, "
    "sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, -, "
    "dining table, -, -, toilet, -, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator, -, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
).split(", ")
COCO_CATEGORIES = {number: name for number, name in enumerate(_NAMES, 1) if name != "-"}

# Detectron2 and matterport number the 80 categories without gaps, by rising id.
COCO_LABELS = Labels(tuple(COCO_CATEGORIES.values()), tuple(COCO_CATEGORIES))
# torchvision's classes are the ids themselves, gaps included.
COCO_LABELS_WITH_GAPS = Labels(tuple(COCO_CATEGORIES.get(i, "N/A") for i in range(1, 91)), tuple(range(1, 91)))


def labels_for(num_classes: int, class_names: Sequence[str] = ()) -> Labels:
    """The labels of an imported model: the given names, or COCO's for 80 and 90 classes, or numbers.

    Raises:
        WeightsError: the number of names is not that of the classes.
    """
    if class_names:
        if len(class_names) != num_classes:
            raise WeightsError(
                f"class_names has {len(class_names)} names for {num_classes} classes; "
                f"num_classes={len(class_names)} keeps everything but the last layers of the file"
            )
        return Labels(tuple(class_names), tuple(range(1, num_classes + 1)))
    known = {80: COCO_LABELS, 90: COCO_LABELS_WITH_GAPS}
    numbers = tuple(range(1, num_classes + 1))
    return known.get(num_classes, Labels(tuple(f"class {i}" for i in numbers), numbers))
