"""What must not go wrong, tried many times: `make faults` writes one table, test | count | outcome, to runs/faults.md.

Each kind of fault is a module of this package with one function:

    def run(count: int, folder: pathlib.Path) -> list[Row]

`count` is how many faults to try (the default is in `run.KINDS`), `folder` an empty folder of its own to write into.
It returns a `Row` for each line of the table, and raises nothing for a fault that is handled wrongly: that is a row
that is not `ok`, whose outcome says what went wrong, with the seed or file that shows it again. What a fault does must
be a function of its number, so that `--only=KIND --count=N` repeats it.

A kind runs in a process of its own, two of them side by side, and all of them together must take less than 20 minutes
on two cores. To add one, write the module and name it in `run.KINDS`.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        test: what was done, in a few words.
        count: how many times.
        outcome: what came of it, in a few words.
        ok: whether every one came out right.
    """

    test: str
    count: int
    outcome: str
    ok: bool


def tally(test: str, wrong: list[str], count: int, right: str) -> Row:
    """The row of a test whose faults were handled right but for those in `wrong`, of which the first is quoted."""
    if not wrong:
        return Row(test, count, right, True)
    return Row(test, count, f"{len(wrong)} WRONG, the first: {wrong[0]}", False)
