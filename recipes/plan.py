"""Plan: compute what a run will do, and how much memory, time and money it needs, before it starts; no torch.

python recipes/plan.py yamls/biomedlm-2.7b.yaml --gpus 128 --gpu a100-40gb                    # will it fit, how long
python recipes/plan.py yamls/biomedlm-2.7b.yaml --gpus 64 --gpu h100 --price 2.5 --mfu 0.4    # cost, at a speed known
python recipes/plan.py yamls/biomedlm-2.7b.yaml activation_checkpointing=true --gpus 8 --gpu a10 --json
python recipes/plan.py yamls/biomedlm-2.7b.yaml --gpu h100 --mfu 0.408 --scaling 8 16 32 64 128 256 512 1024
python recipes/plan.py yamls/biomedlm-2.7b.yaml --gpus 64 --gpu b200 --stack next    # on another torch than the lock's

The first line of the output says whether the run fits. If it does not fit, or if the locked torch has no code for the
GPU, the command exits with code 2 and prints what would help.
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

import json
from collections.abc import Sequence
from pathlib import Path

from data_prep.common.command_line import Allowed, new_parser
from data_prep.common.errors import BadInput, run
from data_prep.common.last_line import say_made
from data_prep.common.limits import Real, Whole
from data_prep.common.manifest import MANIFEST
from recipes.checkpointing.origin import load_training_config
from recipes.config.schema import MFU, PRICE, WORLD_SIZE
from recipes.planning import cluster_estimate, estimate_text
from recipes.planning.gpus import GPUS, add_stack
from recipes.planning.run_plan import RANKS_PER_NODE, check_shards, make_plan


def command_line(argv: Sequence[str] | None = None) -> None:
    """Print how much memory, time and money a run needs on a cluster.

    Raises:
        BadInput: the GPU is unknown, the stack cannot run it, or the run does not fit.
    """
    parser = new_parser(__doc__)
    parser.add_argument("yaml", help="configuration, such as yamls/biomedlm-2.7b.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it, such as max_duration=50e9tok")
    parser.add_argument("--gpu", required=True, metavar="NAME", help=f"one of {', '.join(GPUS)}")
    add_stack(parser)
    parser.add_argument(
        "--gpus", type=Allowed(WORLD_SIZE), metavar="N", help="number of GPUs (default: world_size of the YAML)"
    )
    parser.add_argument(
        "--gpus-per-node",
        type=Allowed(Whole(1, 1000)),
        default=RANKS_PER_NODE,
        metavar="N",
        help="GPUs of one node (default: %(default)s)",
    )
    parser.add_argument(
        "--mfu",
        type=Allowed(MFU),
        metavar="SHARE",
        help="MFU that a run of yours reached, such as 0.231 (default: published)",
    )
    parser.add_argument("--price", type=Allowed(PRICE), metavar="MONEY", help="price of a GPU-hour, in any currency")
    parser.add_argument(
        "--network",
        type=Allowed(Real(0, 10**6, above=True)),
        metavar="GBIT",
        help="Gbit/s that a node sends (default: that of a usual node)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--scaling",
        type=Allowed(WORLD_SIZE),
        nargs="+",
        metavar="N",
        help="print a Markdown table with a row for each number of GPUs",
    )
    given = parser.parse_intermixed_args(argv)
    cfg = load_training_config(given.yaml, given.overrides)
    if given.scaling:
        if given.json or given.gpus or given.price is not None:
            raise BadInput("--scaling prints a table of its own; leave --json, --gpus and --price out")
        table = (cfg, given.scaling, given.gpu, given.mfu, given.network, given.gpus_per_node, given.stack)
        print(estimate_text.scaling_table(*table))
        return
    shards = check_shards(cfg) if (Path(cfg.data.shards) / MANIFEST).is_file() else None
    plan = make_plan(cfg, given.gpus or cfg.world_size, shards, given.gpus_per_node)
    cast = cluster_estimate.make_forecast(cfg, plan, given.gpu, given.mfu, given.price, given.network, given.stack)
    print(
        json.dumps(estimate_text.as_json(cast), indent=2)
        if given.json
        else estimate_text.format_forecast(cast, cfg, plan)
    )
    if not cast.fits:
        raise BadInput(estimate_text.refusal(cast, cfg, plan))
    if not given.json:
        preflight = ("recipes/preflight.py", given.yaml, *given.overrides, "--fake-world", plan.world_size)
        say_made(given.yaml, "it fits", "python", *preflight)


if __name__ == "__main__":
    run(command_line)
