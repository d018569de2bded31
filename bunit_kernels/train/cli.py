"""The command line of ``python -m bunit_kernels.train``."""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

from .. import __version__, backends
from ..models import list_models
from .augment import AUGMENTATIONS
from .checkpoint import load_checkpoint
from .distributed import find_processes, joined
from .errors import TimeUp, TrainingError, UserError
from .evaluate import evaluate
from .prepare import prepare_device
from .recipes import RECIPES, list_recipes
from .run import METRICS, Run
from .settings import AMP_TYPES, OPTIMIZERS, SCHEDULES, Settings, option

PROGRAM = "python -m bunit_kernels.train"
_DEFAULTS = Settings()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 1 where training failed, 2 where the input
    cannot be used, 3 where ``--max-minutes`` went by first, 130 where it was interrupted."""
    try:
        options = parse(argv)
        if options.list_models:
            print("\n".join(list_models()))
            return 0
        if options.list_recipes:
            print(list_recipes())
            return 0
        return _run(options)
    except UserError as error:
        return _fail(error, 2)
    except TrainingError as error:
        return _fail(error, 1)
    except BrokenPipeError:  # for ``command_line.run``
        raise
    except OSError as error:  # a full disk, a folder that vanished
        return _fail(error, 1)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted", 130)


def _run(options: argparse.Namespace) -> int:
    settings = Settings(**{f.name: getattr(options, f.name) for f in fields(Settings)})
    try:
        chosen = nullcontext() if settings.backend is None else backends.backend(settings.backend)
    except (ValueError, backends.BackendUnavailable) as error:
        raise UserError(str(error)) from error
    processes = find_processes()
    if options.eval_only:
        with chosen:
            evaluate(settings, options.checkpoint, load_checkpoint(options.checkpoint))
        return 0
    folder = options.resume or options.out
    if processes.world > 1 and folder is None:
        raise UserError("several processes need an --out, the same in each of them")
    # Started again by torchrun with the same command: on with what is there.
    again = processes.restarts > 0 and (folder / METRICS).is_file()
    device = prepare_device(settings, processes.local_rank)
    with chosen, joined(processes, device):
        run = Run(
            settings,
            device,
            folder=folder,
            resume=options.resume is not None or again,
            checkpoint=None if again else options.checkpoint,
            quiet=options.quiet,
            processes=processes,
        )
        try:
            run.train(options.max_minutes)
        except TimeUp:
            if processes.first:
                print(
                    f"{PROGRAM}: {options.max_minutes:g} minutes are up; continue with: {PROGRAM} "
                    f"--resume {run.folder}",
                    file=sys.stderr,
                )
            return 3
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; continue with: {PROGRAM} --resume {run.folder}"
            ) from None
    return 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the options; those not given come from the resumed run, the evaluated checkpoint or
    the recipe.

    Raises:
        UserError: the run or checkpoint cannot be read, or options contradict each other.
        SystemExit: an option does not parse (code 2).
    """
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.eval_only and options.checkpoint is None:
        raise UserError("--eval-only needs a --checkpoint")
    if options.resume is not None and (options.out or options.checkpoint or options.eval_only):
        raise UserError(
            "--resume goes on in its own folder, from its own checkpoints: it takes no "
            "--out, --checkpoint or --eval-only"
        )
    if options.resume is not None:
        saved = _settings_of_run(options.resume)
    elif options.eval_only:
        saved = load_checkpoint(options.checkpoint)["settings"]
    elif options.recipe in RECIPES:  # of another name Settings complains
        saved = RECIPES[options.recipe].values
    else:
        return options
    before = saved.get("recipe")
    if (options.resume or options.eval_only) and options.recipe not in (None, before):
        raise UserError(
            f"--recipe {options.recipe} is for new runs, this one has "
            + ("no recipe" if before is None else f"recipe {before}")
            + "; single options, such as --epochs, may change"
        )
    known = {f.name for f in fields(Settings)}
    parser.set_defaults(**{key: value for key, value in saved.items() if key in known})
    return parser.parse_args(argv)


def _settings_of_run(folder: Path) -> dict:
    path = folder / METRICS
    try:
        settings = json.loads(path.read_text())["settings"]
    except FileNotFoundError:
        raise UserError(f"{folder} holds no run: there is no {path}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"cannot read the settings of a run from {path}: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"cannot read the settings of a run from {path}: they are no object")
    return settings


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Trains a network of basic units beside its dense counterpart and prints what "
        "it saves. With no argument: bunit_cnn on scikit-learn's digits, seconds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_task(parser.add_argument_group("what"))
    _add_recipe(parser.add_argument_group("how"))
    _add_machine(parser.add_argument_group("on what"))
    _add_files(parser.add_argument_group("files"))
    parser.add_argument("--list-models", action="store_true", default=False, help="and stop")
    parser.add_argument("--list-recipes", action="store_true", default=False, help="and stop")
    parser.add_argument("--quiet", action="store_true", default=False, help="no progress")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _option(group, name: str, help: str, **kwargs) -> None:
    """An option for the setting of the same name, with its default."""
    default = getattr(_DEFAULTS, name)
    if isinstance(default, bool):
        kwargs["action"] = argparse.BooleanOptionalAction
    group.add_argument(option(name), default=default, help=help, **kwargs)


def _add_task(group) -> None:
    _option(group, "model", "name of the network, see --list-models")
    group.add_argument(
        "--model-arg",
        action=_ModelArgument,
        default={},
        metavar="NAME=VALUE",
        help="an argument of the model, such as num_units=40; may be repeated",
    )
    _option(group, "dense", "train the dense counterpart too")
    _option(
        group,
        "data",
        "digits, synthetic, or a path: MNIST's idx files or mnist.npz, CIFAR-10's or CIFAR-100's "
        "Python batches, Tiny-ImageNet, ImageNet, a folder of images (train/CLASS/*, test/CLASS/*, "
        "or CLASS/*)",
    )
    _option(group, "image_size", "makes all images N x N pixels", type=int, metavar="N")
    _option(
        group,
        "stream",
        "decode a folder's images as they are needed; without it where they are more than 4 GiB "
        "as bytes",
        action=argparse.BooleanOptionalAction,
    )
    _option(
        group,
        "augment",
        "variation of training images; auto: crop-flip for colour (streamed: resized-crop-flip), "
        "none for grey",
        choices=AUGMENTATIONS,
    )
    _option(group, "limit", "use at most N training and test images", type=int, metavar="N")


def _add_recipe(group) -> None:
    _option(
        group,
        "recipe",
        f"settings of the paper's experiments ({', '.join(RECIPES)}; --list-recipes says which); "
        "options given beside it win",
        metavar="NAME",
    )
    _option(group, "epochs", "passes over the training images", type=int)
    _option(group, "batch_size", "images a batch, in each process", type=int)
    _option(group, "accumulate", "batches a step", type=int, metavar="N")
    _option(group, "optimizer", "of the weights", choices=OPTIMIZERS)
    _option(group, "lr", "learning rate, the highest of the schedule", type=float)
    _option(
        group,
        "schedule",
        "after the warm-up: cosine falls to 0 as half a cosine",
        choices=SCHEDULES,
    )
    _option(group, "momentum", "of SGD", type=float)
    _option(group, "nesterov", "Nesterov's momentum")
    _option(group, "epsilon", "of Adam and AdamW, added to the denominator", type=float)
    _option(group, "weight_decay", "on weights, not on biases and norms", type=float)
    _option(group, "warmup_epochs", "of linear warm-up", type=float)
    _option(group, "label_smoothing", "of the cross entropy", type=float)
    _option(group, "mixup", "parameter alpha of mixup, such as 0.2; 0: none", type=float)
    _option(group, "clip_norm", "largest norm of a step's gradient", type=float, metavar="NORM")
    _option(
        group,
        "ema",
        "decay of a moving average of the weights, such as 0.999, which is then what is tested",
        type=float,
        metavar="DECAY",
    )
    _option(group, "teacher", "checkpoint of a network to learn from", metavar="FILE")
    _option(group, "teacher_weight", "share of the teacher in the loss", type=float)
    _option(group, "temperature", "of the teacher's and the student's logits", type=float)
    _option(group, "seed", "of the weights, the order and the variation", type=int)


def _add_machine(group) -> None:
    _option(group, "device", "auto, cpu, cuda, cuda:1, ...")
    _option(
        group,
        "backend",
        "of stacked layers: auto, reference, torch, cpp, cuda or triton; without it what "
        "BUNIT_BACKEND says, or auto",
    )
    _option(
        group,
        "amp",
        f"automatic mixed precision: {' or '.join(AMP_TYPES)}",
        nargs="?",
        const=AMP_TYPES[0],
        metavar="TYPE",
    )
    _option(group, "channels_last", "memory format of images and weights")
    _option(group, "compile", "torch.compile the networks")
    _option(group, "deterministic", "refuse operations that are not")
    _option(group, "threads", "of torch on the CPU", type=int, metavar="N")
    _option(
        group,
        "workers",
        "threads that decode an image folder; processes where it is streamed",
        type=int,
        metavar="N",
    )


def _add_files(group) -> None:
    _option(
        group,
        "save_every",
        "steps between checkpoints within an epoch; without it there is one after each epoch",
        type=int,
        metavar="N",
    )
    group.add_argument(
        "--max-minutes",
        type=_minutes,
        default=None,
        metavar="M",
        help="stop training after M minutes (5 or 0.5) with a checkpoint and exit code 3; --resume "
        "goes on to the same bits",
    )
    _option(group, "tensorboard", "write curves for TensorBoard into the run's folder")
    group.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="of checkpoints and metrics.json; runs/MODEL-DATA-TIME where not given",
    )
    group.add_argument(
        "--resume",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="go on with the run in that folder, with its settings where no option says otherwise",
    )
    group.add_argument(
        "--checkpoint",
        type=Path,
        default=None,
        metavar="FILE",
        help="start from these weights, or evaluate them",
    )
    group.add_argument(
        "--eval-only", action="store_true", default=False, help="evaluate --checkpoint and stop"
    )


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected minutes from 0 up, got {text!r}")
    return value


class _ModelArgument(argparse.Action):
    """Collects ``NAME=VALUE``; a value is a Python literal, or else a string."""

    def __call__(self, parser, namespace, values, option_string=None):
        name, separator, text = values.partition("=")
        if not separator or not name.isidentifier():
            parser.error(f"{option_string} takes NAME=VALUE, got {values!r}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            value = text
        namespace.model_arg = {**namespace.model_arg, name: value}


def _fail(message: object, code: int) -> int:
    rank = os.environ.get("RANK")
    where = PROGRAM if rank is None else f"{PROGRAM}, process {rank}"
    print(f"{where}: {message}", file=sys.stderr)
    return code
