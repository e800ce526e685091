"""What the files beside tokenizer.json may ask of transformers: no code, no other files, no class but GPT-2's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import read_json

TOKENIZER_CONFIG, SPECIAL_TOKENS, MODEL_CONFIG = "tokenizer_config.json", "special_tokens_map.json", "config.json"
# transformers takes any key of either for a setting, and where the first names no class, config.json's.
SETTINGS = (TOKENIZER_CONFIG, SPECIAL_TOKENS)
CLASS = "tokenizer_class"
# GPT-2's own, and the one that reads any tokenizer.json; the last is what transformers 5 calls it. Others read other
# formats, pickles among them (CVE-2025-14921).
CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# Names of code, or of files in place of those that are checked and hashed; transformers 4 opens any path.
NOT_READ = (
    "auto_map", "init_inputs", "vocab_file", "merges_file", "tokenizer_file", "fast_tokenizer_files", "gguf_file",
    "from_slow", "tokenizer_object", "__slow_tokenizer",
)  # fmt: skip
TEMPLATE = "chat_template"  # a text of any length beside the special tokens
TEMPLATES = "additional_chat_templates"  # a folder of more, each with a name


def check_settings(folder: Path) -> None:
    """Refuse a tokenizer whose files ask for more than a GPT-2's do.

    Of named chat templates transformers before 5.10 makes files wherever their names point (CVE-2026-9856).

    Raises:
        BadInput: a file cannot be read, or the setting that it may not have.
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
    """The class that a checked folder asks for; None: it names none, and GPT-2's is meant."""
    return _read(folder / TOKENIZER_CONFIG).get(CLASS) or _read(folder / MODEL_CONFIG).get(CLASS)


def _read(path: Path) -> dict[str, Any]:
    """The settings in a file; a value that is no object is refused by whoever needs one."""
    value = read_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}
