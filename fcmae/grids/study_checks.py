"""Checks before the hours of a study, and notes for the reader of its answers.

``study.json`` holds the state of a study; a study continues only with the settings recorded there.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backbones.checkpoint import load_encoder
from backbones.convnext import build_convnext
from backbones.errors import InputError, counted
from backbones.whole_files import write_json
from fcmae.grids.study_labels import LabelSet, Split, content_of, digests, split_labels
from fcmae.grids.study_plan import Arm, StudyOptions
from images.files import Reading
from images.folders import files_of_folder

logger = logging.getLogger(__name__)

STATE = "study.json"
FREE = ("hours", "at_once", "max_seeds")  # settings that may change when a study continues


def check_study(options: StudyOptions, labels: LabelSet, test: LabelSet) -> tuple[Split, list[str]]:
    """Report everything that cannot work, at once. (A short run tests weights of whole models.)

    Returns:
        The split of the labels, and notes for the reader of the answers.

    Raises:
        InputError: for too few labels, labelled images that are not there, an output folder among
            the images, test images that are trained on (by their pixels), and encoders that do
            not load.
    """
    problems, notes, split = [], [], None
    try:
        split = split_labels(labels, options.labels)
    except InputError as error:
        problems.append(str(error))
    output, images = Path(options.output_dir).resolve(), Path(options.images).resolve()
    if images.is_dir() and output.is_relative_to(images):
        problems.append(
            f"--output-dir {options.output_dir} lies in --images {options.images}: FCMAE would "
            "learn from the study's own pictures; choose a folder elsewhere"
        )
    for flag, part in (("--train", labels), ("--test", test)):
        if missing := [file for file in map(part.file, part.images) if not file.is_file()]:
            problems.append(
                f"{len(missing)} of the {counted(len(part.images), 'image')} of {flag} are not "
                f"there, such as {missing[0]}: give the folder that the file names are relative "
                f"to by {flag}-images, or by --images"
            )
    reading = Reading(channels=None)
    of_test = digests(map(test.file, test.images), reading)
    trained = digests(map(labels.file, labels.images), reading)
    if shared := [path for key, path in of_test.items() if key in trained]:
        problems.append(
            f"{len(shared)} test images are among the labelled ones, such as {shared[0]}: take "
            "them out of --train, or the results look too good"
        )
    if any(arm.pretrained for arm in options.arms):
        unlabelled = digests(files_of_folder(images).images, reading)
        if among := sum(key in unlabelled for key in of_test):
            notes.append(
                f"{among} of the {len(test.images)} test images are among the unlabelled ones: "
                "FCMAE saw their pixels, never their labels."
            )
    problems += [line for arm in options.arms for line in _weight_problems(arm, options)]
    if problems:
        raise InputError("\n".join(problems))
    assert split is not None
    return split, notes


def _weight_problems(arm: Arm, options: StudyOptions) -> list[str]:
    """Why an arm's files cannot be its start, as far as this shows without a run."""
    for file in filter(None, (arm.weights, arm.detector)):
        if not file.startswith("timm:") and not Path(file).is_file():
            return [f"{arm.name}: there is no file {file}"]
    if arm.weights:
        model = build_convnext(options.model, in_chans=options.in_chans)
        try:
            load_encoder(arm.weights, model, adapt_channels=True, log=logger)
        except (InputError, OSError) as error:
            return [f"the start {arm.name} does not load: {error}"]
    return []


def begin_or_go_on(options: StudyOptions) -> dict[str, Any]:
    """The content of ``study.json``, or of a new one.

    Raises:
        InputError: if the study in the folder had other arguments or data.
    """
    folder = Path(options.output_dir)
    asked = json.loads(json.dumps(asdict(options)))
    files = [arm.weights or arm.detector for arm in options.arms]
    names = (options.images, options.train, options.test, options.train_images,
             options.test_images, options.config_file, *files)  # fmt: skip
    content = {name: content_of(name, folder) for name in dict.fromkeys(names) if name}
    path = folder / STATE
    if not path.is_file():
        state = {"asked": asked, "content": content, "spent": 0.0, "joules": {}}
        write_json(path, state, indent=1)
        return state
    state = json.loads(path.read_text(encoding="utf-8"))
    changed = [
        f"{key} was {state['asked'].get(key)!r}, is {value!r}"
        for key, value in asked.items()
        if key not in FREE and state["asked"].get(key) != value
    ]
    before = state.get("content", {})
    changed += [
        f"data was changed since: {name}"
        for name, digest in content.items()
        if before.get(name) != digest
    ]
    if changed:
        head = f"the study in {folder} was begun with other arguments:"
        remedy = "give its own, or another --output-dir"
        raise InputError("\n  ".join([head, *changed, remedy]))
    return state
