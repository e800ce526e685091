"""Check the settings beside tokenizer.json: they may name no code, no other files and no class but GPT-2's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import read_json

TOKENIZER_CONFIG, SPECIAL_TOKENS, MODEL_CONFIG = "tokenizer_config.json", "special_tokens_map.json", "config.json"
# transformers uses every key of these two files as a setting. If they name no class, it uses the one in config.json.
SETTINGS = (TOKENIZER_CONFIG, SPECIAL_TOKENS)
CLASS = "tokenizer_class"
# GPT-2's own classes, and the class that reads any tokenizer.json, which has another name in transformers 5. Other
# classes read other formats, pickles among them (CVE-2025-14921).
CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# Settings that name code, or files to open in place of those that are checked and hashed.
NOT_READ = (
    "auto_map", "init_inputs", "vocab_file", "merges_file", "tokenizer_file", "fast_tokenizer_files", "gguf_file",
    "from_slow", "tokenizer_object", "__slow_tokenizer",
)  # fmt: skip
TEMPLATE = "chat_template"  # a text of any length
TEMPLATES = "additional_chat_templates"  # a folder of further templates, each with a name


def check_settings(folder: Path) -> None:
    """Refuse a tokenizer folder whose settings name code, other files, another class, or chat templates with names.

    When transformers before 5.10 saves a tokenizer, it writes named chat templates to files whose paths are these names
    (CVE-2026-9856).

    Raises:
        BadInput: a file cannot be read, or has such a setting.
    """
    for name in (*SETTINGS, MODEL_CONFIG):
        settings = _read(folder / name)
        asked = settings.get(CLASS)
        if asked is not None and asked not in CLASSES:
            raise BadInput(
                f"{folder / name}: {CLASS} = {asked!r} is not read, only {', '.join(CLASSES)}; where {folder} has a "
                f"tokenizer.json of GPT-2's kind, put {CLASSES[2]!r} there"
            )
    for name in SETTINGS:
        settings = _read(folder / name)
        template = settings.get(TEMPLATE)
        if template is not None and not isinstance(template, str):
            raise BadInput(
                f"{folder / name}: {TEMPLATE} is a {type(template).__name__}; only one template is read, as a text"
            )
        if wrong := [key for key in NOT_READ if settings.get(key)]:
            raise BadInput(f"{folder / name} asks for {wrong[0]}, which this recipe does not read; remove it there")
    if any((folder / TEMPLATES).glob("*.jinja")):
        raise BadInput(f"{folder / TEMPLATES}: named chat templates are not read; remove this folder")


def tokenizer_class(folder: Path) -> str | None:
    """The class that a checked folder names; None: it names no class, and is read as GPT-2's."""
    return _read(folder / TOKENIZER_CONFIG).get(CLASS) or _read(folder / MODEL_CONFIG).get(CLASS)


def _read(path: Path) -> dict[str, Any]:
    """The settings in a file; none if the file is missing or contains something other than an object."""
    value = read_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}
