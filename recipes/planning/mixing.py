"""The folders of token shards that a run reads, and how many samples of each a pass reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.sharding.shard_format import ShardsInfo, read_shards_info
from recipes.config.schema import TrainConfig
from recipes.config.shards_command import shards_command

MIXED_EVAL = "eval-"


@dataclass(frozen=True)
class ShardFolder:
    """A folder of token shards that a run reads.

    Attributes:
        name: name in `data.mix`; None: the folder is `data.shards`.
        info: contents of its manifest.
        remote: folder or object store to fetch its shards from; None: nothing is fetched.
        samples_a_pass: number of its samples in a pass over the training data.
    """

    name: str | None
    info: ShardsInfo
    remote: str | None
    samples_a_pass: int

    @property
    def key(self) -> str:
        """The section of the configuration that names the folder."""
        return section_of(self.name)

    @property
    def eval_label(self) -> str:
        """Composer's label of its validation split. The metrics are called `metrics/LABEL/…`."""
        return f"{MIXED_EVAL}{self.name}" if self.name else "eval"


def section_of(name: str | None) -> str:
    """The section of the configuration that names a folder: `data`, or `data.mix.NAME`."""
    return f"data.mix.{name}" if name else "data"


def shard_folders(cfg: TrainConfig, main: ShardsInfo | None = None) -> list[ShardFolder]:
    """Return the folders that a run reads: `data.shards`, then those of `data.mix` in the order of their names.

    A pass reads each sample of `data.shards` once. To these, samples of the other folders are added until each folder
    has its configured share of the pass.

    Args:
        cfg: configuration of the run.
        main: contents of the manifest of `data.shards`, if it was already read.

    Raises:
        BadInput: a folder holds no finished shards, or a share is less than one sample.
    """
    main = main or read_shards_info(Path(cfg.data.shards), shards_command(cfg))
    mix, whole = cfg.data.mix or {}, main.counts["train"].samples
    rest = 1 - sum(of.share for of in mix.values())
    folders = [ShardFolder(None, main, cfg.data.remote, whole)]
    for name in sorted(mix):
        of, key = mix[name], section_of(name)
        try:
            info = read_shards_info(Path(of.shards))
        except BadInput as error:
            raise BadInput(f"{key}.shards: {error}; data.mix=null leaves out what is mixed in") from None
        samples = round(whole * of.share / rest)
        if not samples or not info.counts["train"].samples:
            raise BadInput(
                f"{key}.share = {of.share:g}, but beside {whole:,} samples of {main.folder} that is not one sample of "
                f"{info.folder}, which has {info.counts['train'].samples:,}; give a larger share, or leave it out"
            )
        folders.append(ShardFolder(name, info, of.remote, samples))
    return folders


def refuse_the_same_twice(folders: Sequence[ShardFolder]) -> None:
    """Refuse shards that are configured under two names, because their shares would then be wrong.

    Raises:
        BadInput: two folders are the same, or are copies of each other.
    """
    seen: dict[str, ShardFolder] = {}
    for folder in folders:
        if (other := seen.setdefault(folder.info.sha256, folder)) is not folder:
            raise BadInput(
                f"{folder.key}.shards = {folder.info.folder} holds the shards of {other.key}.shards = "
                f"{other.info.folder}; name each once"
            )
