"""Moving the tensors of a file into a model, with an account of every one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kmaskrcnn.errors import WeightsError

Transform = Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a weight of the model comes from.

    Attributes:
        variable: of the model.
        names: of the tensors in the file that it is made of.
        transform: takes their arrays, in order, to the variable's value; raises ValueError where the shapes are wrong.
        is_last_layer: it belongs to a layer whose size depends on the classes.
    """

    variable: keras.Variable
    names: tuple[str, ...]
    transform: Transform
    is_last_layer: bool = False


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file.

    Attributes:
        source: the file.
        used: names of the tensors that are in the model now.
        unused: names of tensors that belong to no part of a detector, or were left out with the last layers.
        untouched: paths of the model's weights that kept their random values: the last layers or the mask head, on
            request.
    """

    source: str
    used: tuple[str, ...]
    unused: tuple[str, ...]
    untouched: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.source}: {len(self.used)} tensors loaded"
        if self.unused:
            text += f"; not used: {', '.join(self.unused)}"
        if self.untouched:
            text += f"; random, to be trained: {', '.join(self.untouched)}"
        return text


class MisfitError(WeightsError):
    """A file that does not fit the model.

    Attributes:
        missing: names that the model needs and the file lacks.
        left_over: names in the file that the model has no place for.
        misshapen: a line for each tensor of a wrong shape or with values that are not finite.
    """

    def __init__(
        self, source: str, missing: Sequence[str], left_over: Sequence[str], misshapen: Sequence[str], hint: str = ""
    ) -> None:
        self.missing, self.left_over, self.misshapen = tuple(missing), tuple(left_over), tuple(misshapen)
        parts = [
            f"{len(names)} tensors {what}: {_some(names)}"
            for names, what in ((missing, "are missing"), (left_over, "have no place in the model"))
            if names
        ]
        parts += [_some(misshapen, 2)] if misshapen else []
        super().__init__(f"{source}: {'; '.join(parts)}{hint}")


def _some(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def transfer(
    entries: Sequence[Entry],
    tensors: Mapping[str, np.ndarray],
    source: str,
    is_spare: Callable[[str], bool] = lambda name: False,
    new_classes: bool = False,
    fresh_masks: bool = False,
) -> LoadReport:
    """Set every weight from the tensors; all of them, or none and an error is raised.

    Args:
        entries: one for every weight of the model.
        tensors: of the file, by name.
        source: the file, for messages.
        is_spare: whether a name that no entry has may be there.
        new_classes: where the last layers do not fit, leave them as they are instead of raising.
        fresh_masks: leave the mask head as it is, for a file that has none.

    Raises:
        MisfitError: missing, left-over or misshapen tensors, or values that are not finite.
    """
    skipped = [entry for entry in entries if fresh_masks and "mask_head/" in entry.variable.path]
    entries = [entry for entry in entries if not (fresh_masks and "mask_head/" in entry.variable.path)]
    wanted = {name for entry in entries for name in entry.names}
    missing = sorted(wanted - tensors.keys())
    others = sorted(tensors.keys() - wanted)
    left_over = [name for name in others if not is_spare(name)]
    values: list[tuple[Entry, np.ndarray]] = []
    wrong: list[tuple[Entry, str]] = []
    for entry in entries:
        if tensors.keys() >= set(entry.names):
            made = _make(entry, tensors)
            if isinstance(made, str):
                wrong.append((entry, made))
            else:
                values.append((entry, made))
    if new_classes and any(entry.is_last_layer for entry, _ in wrong):
        skipped += [entry for entry in entries if entry.is_last_layer]
        values = [(entry, value) for entry, value in values if not entry.is_last_layer]
        wrong = [(entry, problem) for entry, problem in wrong if not entry.is_last_layer]
    if missing or left_over or wrong:
        other_classes = wrong and all(entry.is_last_layer for entry, _ in wrong)
        hint = "; the classes differ: ask for new classes to keep everything but the last layers"
        problems = [problem for _, problem in wrong]
        raise MisfitError(source, missing, left_over, problems, hint if other_classes else "")
    for entry, value in values:
        entry.variable.assign(value.astype("float32"))
    used = {name for entry, _ in values for name in entry.names}
    return LoadReport(
        source,
        used=tuple(sorted(used)),
        unused=tuple(sorted(tensors.keys() - used)),
        untouched=tuple(entry.variable.path for entry in skipped),
    )


def _make(entry: Entry, tensors: Mapping[str, np.ndarray]) -> np.ndarray | str:
    """The value of an entry, or what is wrong with it."""
    arrays = [tensors[name] for name in entry.names]
    expected = tuple(entry.variable.shape)
    try:
        value = entry.transform(*arrays)
    except (ValueError, IndexError):
        value = None
    if value is None or value.shape != expected:
        shapes = " and ".join(f"{n} of shape {a.shape}" for n, a in zip(entry.names, arrays, strict=True))
        return f"{shapes} does not fit {entry.variable.path} with {expected}"
    if not np.all(np.isfinite(value)):
        return f"{entry.names[0]} holds values that are not finite"
    return value


def take_size(tensors: Mapping[str, Any], name: str, axis: int, source: str) -> int:
    """The length of one axis of a tensor; raises WeightsError where there is no such tensor or axis."""
    if name not in tensors or tensors[name].ndim <= axis:
        raise WeightsError(f"{source}: not a Mask R-CNN of the expected kind, it has no {name}")
    if tensors[name].size == 0:
        raise WeightsError(f"{source}: {name} of shape {tensors[name].shape} has no elements")
    return int(tensors[name].shape[axis])


def check_shapes(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int | None]], source: str) -> None:
    """Raise MisfitError where a tensor that is there has another shape, None standing for any length.

    A model is built of what single lengths tell; only with all of them checked is it no larger than the file.
    """
    wrong = []
    for name, shape in shapes.items():
        found = tensors[name].shape if name in tensors else shape
        if len(found) != len(shape) or any(b not in (a, None) for a, b in zip(found, shape, strict=True)):
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            wrong.append(f"{name} of shape {found} does not fit the other tensors, which need ({wanted})")
    if wrong:
        raise MisfitError(source, (), (), wrong)
