"""Generate: continue prompts with an exported model, from the command line, in the terminal or on a web page.

python recipes/generate.py --model runs/smoke/model --prompt "Photosynthesis is" --prompt "Treatment with aspirin"
python recipes/generate.py --model runs/smoke/model --prompt "Thrombin" --temperature 0 --max-new-tokens 64
python recipes/generate.py --model runs/smoke/model --out runs/smoke/samples.json    # three biomedical prompts
python recipes/generate.py --model runs/smoke/model --interactive                    # text as it is written
python recipes/generate.py --model runs/smoke/model --model biomedlm --web           # http://127.0.0.1:7860

A model that was fine-tuned on pairs (such as runs/meqsum/model) reads the prompt as its source and writes the target.
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from data_prep.common.command_line import Allowed, FileToWrite, new_parser
from data_prep.common.errors import BadInput, run
from data_prep.common.files import JsonDict
from data_prep.common.last_line import say_made
from data_prep.common.limits import DEVICE, Whole
from data_prep.common.lock import hold
from recipes.generation.samples import sample
from recipes.generation.sampling import NOTICE, PROMPTS, SETTINGS, load_model


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line; generate and print, talk, or serve the page."""
    parser = new_parser(f"{__doc__}\n{NOTICE}")
    parser.add_argument(
        "--model", type=Path, action="append", required=True,
        help="folder of recipes/export.py or recipes/finetune.py; the page takes several",
    )  # fmt: skip
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--prompt", action="append", help="text to continue; may be given again (default: three)")
    way.add_argument(
        "--interactive", action="store_true", help="read prompts from the terminal or a pipe, line by line"
    )
    way.add_argument("--web", action="store_true", help="serve a page (needs the extra `web`)")
    for setting in SETTINGS:
        parser.add_argument(
            f"--{setting.words}", type=Allowed(setting.rule), default=setting.default,
            help=f"{setting.help} (default: {setting.default})",
        )  # fmt: skip
    parser.add_argument("--device", type=Allowed(DEVICE), help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    parser.add_argument(
        "--out",
        type=FileToWrite((".json",)),
        help="also write the samples to this JSON file; if it already has them, do nothing",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address that the page is served on (default: %(default)s)")
    parser.add_argument("--port", type=Allowed(Whole(1, 65535)), default=7860, help="port of the page (default: 7860)")
    arguments = parser.parse_args(argv)
    settings: JsonDict = {setting.name: getattr(arguments, setting.name) for setting in SETTINGS}
    folders: list[Path] = arguments.model
    if arguments.out and (arguments.interactive or arguments.web):
        raise BadInput("--out saves the continuations of --prompt; it cannot be used with --interactive or --web")
    if len(folders) > 1 and not arguments.web:
        raise BadInput(f"--model was given {len(folders)} times; only the page (--web) takes several models")
    if arguments.web:
        from recipes.generation.chat_web import serve

        serve(folders, arguments.device, settings, arguments.host, arguments.port)
    elif arguments.interactive:
        from recipes.generation.chat_cli import talk

        model, tokenizer = load_model(folders[0], arguments.device)
        print(f"note: {NOTICE}", file=sys.stderr)
        talk(model, tokenizer, settings)
    else:
        with hold(arguments.out) if arguments.out else nullcontext():
            sample(folders[0], arguments.device, arguments.prompt or list(PROMPTS), settings, arguments.out)
        talk_to_it = ("python", "recipes/generate.py", "--model", folders[0], "--interactive")
        say_made(arguments.out or folders[0], f"{len(arguments.prompt or PROMPTS)} prompts continued", *talk_to_it)


if __name__ == "__main__":
    run(main)
