"""Additions to the model card that the user requests: check whether they fit the exported model.

If only these additions change, the weights stay the same, and only the card is written again.
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
# Beginnings of the names of licence files.
LICENSES = ("license", "licence", "notice", "copying", "use_policy", "bloomlicense")


def card_request(source: Source, stated: Stated, scores: Path | None, license_file: Path | None) -> JsonDict:
    """Return the part of a request that only affects the card.

    Raises:
        BadInput: an option does not fit the model, or its counterpart is missing.
    """
    if (stated.device_watts is None) != (stated.grid_g_per_kwh is None):
        raise BadInput("--device-watts and --grid-g-per-kwh: grams of CO2 are computed from both; give both or none")
    if stated.device_watts is not None and source.run is None:
        raise BadInput(f"--device-watts: {source.weights} is not a run, so its hours are not known")
    if stated.base_model and source.run is not None and not load_recorded_config(source.run / CONFIG).init_from:
        raise BadInput(f"--base-model: {source.run} began with random weights, not with {stated.base_model}")
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
    """Refuse to replace a folder that holds files which this command did not write."""
    mine = {out / name for name in (MANIFEST, *manifest["outputs"])}
    if others := sorted(path.name for path in out.rglob("*") if path.is_file() and path not in mine):
        raise BadInput(
            f"{out} must be replaced to get another card, but holds files that export.py did not write: "
            f"{', '.join(others)}; move them"
        )


def copy_licenses(source: Path | None, license_file: Path | None, folder: Path) -> None:
    """Copy the licence files of a model folder, and the file that the user gives.

    Args:
        source: the model folder; None for a run.
        license_file: file that is copied to LICENSE; None: there is no such file.
        folder: folder of the exported model.
    """
    for path in sorted(source.iterdir()) if source else ():
        if path.is_file() and path.name.lower().startswith(LICENSES):
            shutil.copyfile(path, folder / path.name)
    if license_file:
        shutil.copyfile(license_file, folder / LICENSE)
