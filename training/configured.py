"""What trainings from a config file have in common, for every task and engine.

``config`` is a config of this project or of detectron2; keys that both have mean the same.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from fvcore.common.config import CfgNode
from timm.utils import ModelEmaV3
from torch import nn

from backbones.convnext import SIZES
from backbones.errors import InputError
from backbones.param_groups import STAGE_LAYERS, parameter_groups
from backbones.weight_files import save_safetensors
from backbones.whole_files import write_text
from training.command_line.commands import own_command
from training.config_files import flatten
from training.devices import automatic_device
from training.guards.checkpoints import checkpoint_step, list_checkpoints
from training.guards.resume import compare_settings, is_free_key
from training.guards.run_folder import refuse_existing_run, refuse_fewer_steps
from training.guards.validation import BEST_WEIGHTS, read_record
from training.options import LoopOptions
from training.records.environment import device_name, git_commit, versions
from training.records.metrics import log_period
from training.schedule import warn_of_schedule

FINAL_WEIGHTS = "model_final.safetensors"
FINAL_AVERAGE = "model_final_ema.safetensors"
# Values that a run replaces by what it finds; on --resume they do not count as changes.
FOUND: dict[str, Any] = {
    "SEED": -1,
    "MODEL.PIXEL_MEAN": [],
    "MODEL.PIXEL_STD": [],
    "INPUT.VALUE_RANGE": [],
    "INPUT.SHOW_BANDS": [],
    "INPUT.TILES.SIZE": 0,
    "INPUT.TILES.OVERLAP": -1,
    "MODEL.ROI_HEADS.NUM_CLASSES": 0,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 0,
}


def flat_values(config: Any) -> dict[str, int | float | str]:
    """All keys with their values, lists as text, for experiment trackers."""
    values = dict(flatten(config))
    return {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in values.items()}


def resolve_device(config: Any) -> str:
    """``MODEL.DEVICE``, with ``auto`` resolved to "cuda" where there is a GPU and else "cpu"."""
    return automatic_device() if config.MODEL.DEVICE == "auto" else config.MODEL.DEVICE


def resolve_precision(config: Any) -> Literal["no", "bf16", "fp16"]:
    """The precision that ``SOLVER.AMP`` asks for: "no", "bf16" or "fp16".

    Raises:
        InputError: for fp16 on a CPU.
    """
    amp = config.SOLVER.AMP
    if not amp.ENABLED:
        return "no"
    if amp.PRECISION == "fp16" and torch.device(resolve_device(config)).type == "cpu":
        raise InputError(
            "SOLVER.AMP.PRECISION is fp16, which needs a GPU, but MODEL.DEVICE is "
            f"{config.MODEL.DEVICE} and trains on the CPU: use bf16, or SOLVER.AMP.ENABLED False"
        )
    return amp.PRECISION


def build_adamw(config: Any, model: nn.Module, encoder_prefix: str) -> torch.optim.AdamW:
    """AdamW with layer-wise decay, by ``SOLVER`` and ``MODEL.CONVNEXT.SIZE``.

    Args:
        model: the encoder and its heads.
        encoder_prefix: what precedes the encoder's names in it, such as ``"backbone.body."``.
    """
    solver = config.SOLVER
    groups = parameter_groups(
        model, solver.BASE_LR, solver.WEIGHT_DECAY, SIZES[config.MODEL.CONVNEXT.SIZE].depths,
        solver.LAYER_DECAY, solver.LAYER_DECAY_TYPE, encoder_prefix,
        stage_layers=solver.get("LAYER_DECAY_LAYERS", STAGE_LAYERS),
    )  # fmt: skip
    return torch.optim.AdamW(groups, lr=solver.BASE_LR)


def warn_of_solver(solver: Any) -> None:
    """Warn of a schedule whose warm-up or drops do not fit the number of steps."""
    drops = solver.STEPS if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" else []
    warn_of_schedule(
        solver.MAX_ITER,
        solver.WARMUP_ITERS,
        [step for step in drops if step < solver.MAX_ITER],
        solver.WARMUP_FACTOR,
    )


def build_average(config: Any, model: nn.Module) -> ModelEmaV3 | None:
    """The exponential moving average of the weights; None without ``SOLVER.EMA.ENABLED``.

    After step n it is ``d * average + (1 - d) * weights`` with ``d = 1 - n ** (-2 / 3)``, at most
    ``SOLVER.EMA.DECAY``: 0.98 after 300 steps, 0.9996 after 130,000. So a short run's average
    forgets where it began.

    Args:
        model: on its device, with the weights to begin from.
    """
    ema = config.SOLVER.EMA
    return ModelEmaV3(model, decay=ema.DECAY, use_warmup=True) if ema.ENABLED else None


def configured_loop(config: CfgNode, resume: bool, device: torch.device) -> LoopOptions:
    """The loop's options, by ``SOLVER``, ``DATALOADER`` and ``OUTPUT_DIR``.

    Raises:
        InputError: for options that are not allowed.
    """
    solver = config.SOLVER
    return LoopOptions(
        output_dir=Path(config.OUTPUT_DIR),
        max_steps=solver.MAX_ITER,
        batch_size=solver.IMS_PER_BATCH,
        workers=config.DATALOADER.NUM_WORKERS,
        precision=resolve_precision(config),
        accumulate=solver.ACCUMULATE,
        log_every=log_period(solver.MAX_ITER),
        checkpoint_every=solver.CHECKPOINT_PERIOD,
        clip_norm=solver.CLIP_GRADIENTS.CLIP_VALUE if solver.CLIP_GRADIENTS.ENABLED else None,
        seed=config.SEED,
        resume=resume,
        device=device.type,
        trackers=("tensorboard", *(["wandb"] if config.WANDB else [])),
        tracked_config=flat_values(config),
    )


def resolve_seed(config: CfgNode, resume: bool) -> int:
    """``SEED``; for -1 the seed of the run that is resumed, else a random one.

    Raises:
        InputError: if it is -1 and there are several processes, which would draw different ones.
    """
    earlier = Path(config.OUTPUT_DIR) / "config.yaml"
    if config.SEED >= 0:
        return config.SEED
    if resume and earlier.is_file():
        return yaml.safe_load(earlier.read_text(encoding="utf-8"))["SEED"]
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 or torch.distributed.is_initialized():
        raise InputError(
            "SEED is -1, which means a random one, but several processes need the same: give a SEED"
        )
    return random.SystemRandom().randrange(2**31)


def holds_run(output_dir: Path) -> bool:
    """Whether there is a checkpoint to continue from."""
    return (output_dir / "last_checkpoint").is_file() or bool(list_checkpoints(output_dir))


def check_output_dir(config: CfgNode, resume: bool, eval_only: bool) -> list[str]:
    """Refuse to overwrite a run, to resume it with other settings, and to evaluate no run.

    Returns:
        Messages about allowed changes since the resumed run began.

    Raises:
        InputError: in these cases.
    """
    output_dir = Path(config.OUTPUT_DIR)
    has_run, earlier = holds_run(output_dir), output_dir / "config.yaml"
    if eval_only:
        if not config.MODEL.WEIGHTS and not has_run:
            raise InputError(
                f"nothing to evaluate: {output_dir} holds no run and MODEL.WEIGHTS is empty; "
                "give MODEL.WEIGHTS a trained model, or OUTPUT_DIR a run's folder"
            )
    elif not resume:
        refuse_existing_run(output_dir)
    elif has_run and earlier.is_file():
        refuse_fewer_steps(output_dir, config.SOLVER.MAX_ITER, steps_done(output_dir))
        texts = earlier.read_text(encoding="utf-8"), config.dump()
        old, new = (dict(flatten(yaml.safe_load(text))) for text in texts)
        for name, value in FOUND.items():
            if new.get(name) == value:
                new[name] = old.get(name, value)
        new["OUTPUT_DIR"] = old.get("OUTPUT_DIR")  # the folder may have been moved
        return compare_settings(old, new, is_free_key)
    return []


def steps_done(output_dir: Path) -> int:
    """The number of steps of a run's newest checkpoint, of either engine; 0 if there is none."""
    done = [checkpoint_step(folder) for folder in list_checkpoints(output_dir)[-1:]]
    # detectron2 counts from 0 in its files' names
    done += [int(p.stem[6:]) + 1 for p in output_dir.glob("model_*.pth") if p.stem[6:].isdigit()]
    config = output_dir / "config.yaml"
    if stopped := read_record(output_dir)["stopped"]:
        done.append(stopped)
    elif any(output_dir.glob("model_final.*")) and config.is_file():
        done.append(yaml.safe_load(config.read_text(encoding="utf-8"))["SOLVER"]["MAX_ITER"])
    return max(done, default=0)


def command_facts(config: CfgNode, config_file: str) -> dict[str, Any]:
    """The facts that ``run.json`` records of a command: versions, device, time, command line.

    Args:
        config_file: where the config came from.
    """
    return {
        "engine": config.ENGINE,
        "versions": versions(),
        "git_commit": git_commit(),
        "command": own_command(),
        "config_file": config_file,
        "device": device_name(resolve_device(config)),
        "seed": config.SEED,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def run_files(run: Path, tool: str) -> tuple[Path, Path]:
    """A run's ``config.yaml`` and ``run.json``.

    Args:
        tool: the file of ``tools/`` that makes such runs, without its ending.

    Raises:
        InputError: if the folder lacks one of them.
    """
    files = run / "config.yaml", run / "run.json"
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(
            f"{run} is not a run: it has no {' and no '.join(missing)}. Give the OUTPUT_DIR of a "
            f"training by tools/{tool}.py"
        )
    return files


def point_to(output_dir: Path, weights: Path | None = None) -> None:
    """Write ``last_checkpoint``: the name of a file, by default that of the newest checkpoint."""
    weights = weights or list_checkpoints(output_dir)[-1] / "model.safetensors"
    write_text(output_dir / "last_checkpoint", weights.relative_to(output_dir).as_posix())


def newest_weights(output_dir: Path) -> Path:
    """The file of a run's weights: the best by its validation sets, else ``last_checkpoint``'s.

    Raises:
        InputError: if there are none.
    """
    if best := sorted(output_dir.glob(f"{BEST_WEIGHTS}.*")):
        return best[0]
    pointer = output_dir / "last_checkpoint"
    named = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    path = output_dir / named
    if not path.is_file():
        raise InputError(
            f"{output_dir} holds no checkpoint: train first, or give MODEL.WEIGHTS a trained model"
        )
    return path


def save_model(
    config: CfgNode, model: nn.Module, path: Path, layout: str, facts: Mapping[str, Any]
) -> None:
    """Write a whole model, with metadata about its training.

    Args:
        layout: the name of the module that defines the tensors' names.
        facts: further metadata: text as it is, everything else as JSON; None is left out.
    """
    metadata = {
        "layout": layout,
        "format_version": "1",
        "size": config.MODEL.CONVNEXT.SIZE,
        "config": config.dump(),
        "git_commit": git_commit(),
        "versions": json.dumps(versions()),
    }
    metadata |= {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in facts.items()
        if value is not None
    }
    save_safetensors({n: t.cpu() for n, t in model.state_dict().items()}, path, metadata)
