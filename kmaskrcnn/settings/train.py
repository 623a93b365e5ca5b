"""Settings of the training."""

from __future__ import annotations

import dataclasses

from kmaskrcnn.settings.field import POSITIVE, SHARE, setting


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training: optimizer, schedule, checkpoints, devices."""

    model_dir: str = setting("", "Folder for checkpoints, config.json, logs and images.")
    init_weights: str = setting(
        "",
        "Weights to start from: 'imagenet', 'imagenet_v2' or a backbone file (.npz, .pth, .safetensors, .pkl); the "
        "name of a preset, hf://OWNER/NAME, a model folder or .weights.h5; 'none'. Downloads what is missing.",
    )
    batch_size: int = setting(
        2, "Images per optimizer step, over all devices, workers and accumulated parts.", **POSITIVE
    )
    accumulate_steps: int = setting(
        1, "Gradient accumulation: parts that the batch of a step is split into.", **POSITIVE
    )
    steps: int = setting(90000, "Optimizer steps.", **POSITIVE)
    epochs: float = setting(
        0.0, "Epochs (passes over the training images) in place of steps; may be a fraction. 0: as steps says.", low=0
    )
    max_minutes: float = setting(
        0.0,
        "Minutes of training, without evaluations and the tracing of the first step; the learning-rate schedule then "
        "runs over this time instead of over steps. 0: no limit.",
        low=0,
    )
    optimizer: str = setting("sgd", "Optimizer.", ("sgd", "adamw"))
    learning_rate: float = setting(
        0.02, "Peak learning rate, for reference_batch_size images per step where that is set.", above=0, high=10
    )
    reference_batch_size: int = setting(
        0, "Scale the learning rate by batch_size / this (linear scaling rule); 0: no scaling.", low=0
    )
    momentum: float = setting(0.9, "SGD momentum.", low=0, below=1)
    weight_decay: float = setting(1e-4, "Weight decay: L2 in the gradient for sgd, decoupled for adamw.", low=0, high=1)
    norm_weight_decay: float = setting(0.0, "Weight decay of the scale and offset of normalization layers.", low=0)
    warmup_steps: int = setting(1000, "Steps of linear warm-up.", low=0)
    warmup_share: float = setting(
        0.0, "Share of the run that is linear warm-up, in place of warmup_steps; 0: as warmup_steps says.", **SHARE
    )
    warmup_factor: float = setting(0.001, "Factor on the learning rate at the first step of the warm-up.", **SHARE)
    schedule: str = setting("step", "Learning-rate schedule.", ("step", "cosine", "constant"))
    drop_at: tuple[float, ...] = setting(
        (0.66667, 0.88889), "schedule=step: shares of the run after which the learning rate drops tenfold."
    )
    clip_norm: float = setting(0.0, "Gradient clipping by this global norm; 0: off.", low=0)
    ema_decay: float = setting(
        0.0,
        "Decay of the exponential moving average (EMA) of the weights, which is evaluated and exported; 0: off.",
        low=0,
        below=1,
    )
    dtype: str = setting(
        "auto",
        "Precision; auto: mixed precision (mixed_bfloat16) where a measurement finds it faster, else float32.",
        ("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    strategy: str = setting(
        "one",
        "Distributed training: one device; mirrored, all GPUs of this machine; multi_worker, those of all workers "
        "in the environment variable TF_CONFIG; tpu (not tested).",
        ("one", "mirrored", "multi_worker", "tpu"),
    )
    num_devices: int = setting(
        0, "GPUs that this process uses, 0 for all; without a GPU and with strategy=mirrored, parts of the CPU.", low=0
    )
    num_local_workers: int = setting(
        0, "Start this many worker processes on this machine; 0: none, this process trains.", low=0
    )
    stall_timeout: float = setting(
        900.0,
        "End the run after this many seconds without a step, an evaluated batch or a checkpoint; 0: never.",
        low=0,
    )
    deterministic: bool = setting(False, "Use only operators that give the same bits each time.")
    on_nonfinite: str = setting(
        "skip",
        "A step with a NaN or infinite loss or gradient is skipped (ten in a row end the run), or ends the run (stop).",
        ("skip", "stop"),
    )
    profile_steps: tuple[int, ...] = setting(
        (), "First and last step to profile for TensorBoard, e.g. 20,25.", lengths=(0, 2)
    )
    seed: int = setting(0, "Random seed of initialization, data order, augmentation and sampling.", low=0)
    log_every: int = setting(
        0, "Steps between progress lines and rows of metrics; 0: a line every 10 seconds, a row every 20 steps.", low=0
    )
    logger: tuple[str, ...] = setting(
        ("tensorboard",), "Where metrics go besides metrics.jsonl: tensorboard, wandb, mlflow."
    )
    checkpoint_every: int = setting(1000, "Steps between checkpoints.", **POSITIVE)
    keep_checkpoints: int = setting(
        2, "Checkpoints to keep, the newest; the best weights by evaluation are kept as well.", **POSITIVE
    )
    eval_every: int = setting(0, "Steps between evaluations during training; 0: only at the end.", low=0)
    patience: int = setting(
        0,
        "Early stopping: evaluations in a row without a better mask AP that end the run; needs eval_every. 0: never.",
        low=0,
    )
