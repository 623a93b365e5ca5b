"""A trained model folder as the package ships it: python -m benchmarks.recipes.preset MODEL_DIR OUTPUT.

Only the best weights are kept, as float16, with the settings of the model and none of the paths of its training.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import h5py
import numpy as np

from kmaskrcnn.config import Config
from kmaskrcnn.model_folder import BEST, read_config


def without_paths(config: Config) -> Config:
    """The settings without what names a file or a folder."""
    paths = ("train_annotations", "train_images", "val_annotations", "val_images", "model_dir")
    return config.replace(**dict.fromkeys(paths, ""), init_weights="imagenet")


def halve(source: Path, target: Path) -> None:
    """Copy a weights file, float32 as compressed float16."""
    with h5py.File(source) as old, h5py.File(target, "w") as new:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group):
                copied = new.require_group(name)
            else:
                value = item[()]
                if value.dtype == np.float32:
                    value = value.astype(np.float16)
                    if not np.isfinite(value).all():
                        raise SystemExit(f"{source}: {name} has values beyond float16")
                copied = new.create_dataset(name, data=value, **({"compression": 9} if value.ndim else {}))
            copied.attrs.update(item.attrs)

        new.attrs.update(old.attrs)
        old.visititems(copy)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    if options.output.exists():
        parser.error(f"{options.output} is there already: give another folder, or move it away")
    options.output.mkdir(parents=True)
    (options.output / "config.json").write_text(without_paths(read_config(options.model_dir)).to_json())
    shutil.copy(options.model_dir / "labels.json", options.output)
    halve(options.model_dir / BEST, options.output / BEST)
    print(f"{options.output}: {(options.output / BEST).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
