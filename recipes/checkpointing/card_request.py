"""What is on the card of a release and in no record: checked against what is released, and what of it is new.

The weights of a folder are the same whatever its card says, so a card alone is written anew.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, sha256_file
from data_prep.common.manifest import MANIFEST, manifest_sha256
from recipes.checkpointing.trained_model import Source
from recipes.config.loading import load_recorded_config
from recipes.runs.model_card import Stated
from recipes.runs.names import CONFIG

LICENSE = "LICENSE"
LICENSES = ("license", "licence", "notice", "copying", "use_policy", "bloomlicense")  # how such files' names begin


def card_request(source: Source, stated: Stated, scores: Path | None, license_file: Path | None) -> JsonDict:
    """What of a request is on the card alone.

    Raises:
        BadInput: it is said of a model of which it cannot be true, or half of it.
    """
    if (stated.device_watts is None) != (stated.grid_g_per_kwh is None):
        raise BadInput("--device-watts and --grid-g-per-kwh: grams of CO2 are computed from both; give both, or none")
    if stated.device_watts is not None and source.run is None:
        raise BadInput(f"--device-watts: {source.weights} is no run, so its hours are not known")
    if stated.base_model and source.run is not None and not load_recorded_config(source.run / CONFIG).init_from:
        raise BadInput(f"--base-model: {source.run} began with weights that were drawn, not with {stated.base_model}")
    for option, path, name in (("--scores", scores, MANIFEST), ("--license-file", license_file, "")):
        if path and not (path / name).is_file():
            raise BadInput(f"{option}: there is no file {path / name}")
    given = {
        **asdict(stated),
        "scores": manifest_sha256(scores) if scores else None,
        "license": sha256_file(license_file) if license_file else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def refuse_additions(out: Path, manifest: JsonDict) -> None:
    """Only what this command wrote is written again."""
    mine = {out / name for name in (MANIFEST, *manifest["outputs"])}
    if others := sorted(path.name for path in out.rglob("*") if path.is_file() and path not in mine):
        raise BadInput(f"{out} gets another card, and holds what export.py did not write: {', '.join(others)}; move it")


def copy_licenses(source: Path | None, license_file: Path | None, folder: Path) -> None:
    """Copy the licence's text: the file that was given, and what lies beside the weights of a model folder.

    Args:
        source: the model folder, None for a run.
        license_file: becomes LICENSE.
        folder: folder of the release.
    """
    for path in sorted(source.iterdir()) if source else ():
        if path.is_file() and path.name.lower().startswith(LICENSES):
            shutil.copyfile(path, folder / path.name)
    if license_file:
        shutil.copyfile(license_file, folder / LICENSE)
