"""The table of what benchmarks.gpu.variations found.

    python -m benchmarks.gpu.score --truth=instances_dev.json --scores=FILE.json DETECTIONS.json.gz ...

Scores go to FILE.json, mean and spread over the seeds as Markdown to the standard output. Up to 300 detections of an
image count.
"""

import argparse
import gzip
import json
import pathlib
import statistics

from kmaskrcnn.evaluation import score

MAX_DETECTIONS = 300
COLUMNS = ("box AP", "mask AP", "mask AP50", "mask AP75", "boundary AP")


def scores_of(truth, results):
    """The columns of one run."""
    box, mask, boundary = (score(truth, results, kind, MAX_DETECTIONS).summary for kind in ("box", "mask", "boundary"))
    return dict(zip(COLUMNS, (box["AP"], mask["AP"], mask["AP50"], mask["AP75"], boundary["AP"]), strict=True))


def table(scored):
    """Markdown, a row a variation; scored has the steps and scores by seed of each."""
    lines = [f"| {' | '.join(('variation', 'seeds', *COLUMNS))} |", "|" + " --- |" * (len(COLUMNS) + 2)]
    for name, own in scored.items():
        runs = list(own["runs"].values())
        cells = [name, str(len(runs))]
        for column in COLUMNS:
            values = [run[column] for run in runs]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=pathlib.Path, required=True, help="COCO annotations of the evaluation images")
    parser.add_argument("--scores", type=pathlib.Path, required=True, help="file to write")
    parser.add_argument("detections", type=pathlib.Path, nargs="+")
    options = parser.parse_args()
    truth, scored = json.loads(options.truth.read_text()), {}
    for path in options.detections:
        with gzip.open(path, "rt") as file:
            own = json.load(file)
        runs = {
            seed: {"seconds": run["seconds"], "loss": run["loss"], **scores_of(truth, run["results"])}
            for seed, run in own["runs"].items()
        }
        scored[own["variation"]] = {"steps": own["steps"], "runs": runs}
    options.scores.write_text(json.dumps(scored, indent=1) + "\n")
    print(table(scored))


if __name__ == "__main__":
    main()
