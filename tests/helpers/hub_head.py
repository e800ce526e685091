"""The metadata of a model card, checked by the Hugging Face hub's library as far as possible without the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import validate_repo_id
from transformers.pipelines import SUPPORTED_TASKS
from yaml import safe_load

from recipes.runs.card_metadata import LICENSES


def head_of(folder: Path) -> dict[str, Any]:
    """The metadata of a card as the hub's library reads it; the library must write the same again."""
    content = (folder / "README.md").read_text(encoding="utf-8")
    head = metadata_load(folder / "README.md")
    assert head is not None and content.startswith("---\n")
    check(head)
    return head


def check(head: dict[str, Any]) -> None:
    """Check everything that the library knows without the hub: its types and its closed lists."""
    named = {"model_name": head["model-index"][0]["name"]} if "model-index" in head else {}
    assert safe_load(ModelCardData(**head, **named).to_yaml()) == head
    assert head.get("license", "mit") in LICENSES.split()
    assert ("license_name" in head) == (head.get("license") == "other")
    # transformers 5 has no pipeline for question-answering; the hub still has that task.
    assert head["library_name"] == "transformers" and head["pipeline_tag"] in {*SUPPORTED_TASKS, "question-answering"}
    assert all(isinstance(tag, str) for tag in head["tags"])
    assert "datasets" not in head, "the text does not come from a data set of the hub"
    if "base_model" in head:
        validate_repo_id(head["base_model"])
    if "model-index" in head:
        name, results = model_index_to_eval_results(head["model-index"])
        assert eval_results_to_model_index(name, results) == head["model-index"] and results
