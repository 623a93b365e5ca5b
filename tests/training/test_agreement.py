"""What several workers go by: the same step for all, whatever one of them has looked at already."""

from kmaskrcnn.training.agreement import Agreement


def test_a_worker_that_looked_ahead_goes_by_what_the_others_know():
    told = [{"stop": float(step >= 5), "clock": 10.0 * step, "loss": 1.0} for step in range(8)]
    workers = [(Agreement(-1.0), []), (Agreement(-1.0), [])]
    seen = []
    for step in range(1, 9):
        for number, (agreed, heard) in enumerate(workers):
            # The step before is heard while the next one runs; that one too where a line of this worker's log is due.
            due = step in (3, 6) and number == 0
            for one in [s for s in range(step if due else step - 1) if s not in heard]:
                agreed.hear(one, told[one])
                heard.append(one)
            agreed.advance(step)
        first, second = ((agreed.stop, agreed.clock) for agreed, _ in workers)
        assert first == second
        seen.append(first)
    assert seen == [(0.0, -1.0), *((one["stop"], one["clock"]) for one in told[:7])]
