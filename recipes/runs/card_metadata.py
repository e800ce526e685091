"""The YAML head of a model card, with the keys of the Hugging Face hub; unknown facts are left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from yaml import safe_dump

# https://huggingface.co/docs/hub/repositories-licenses; the hub refuses a card with any other licence.
LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense
zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3 gemma unknown other
"""


def metadata(license: str | None, pipeline_tag: str, about_pubmed: bool, **known: Any) -> str:
    """Return the lines of the head.

    Args:
        license: stated licence of the weights; None if no licence was stated. If the hub does not know the licence, the
            head has `other`, and the stated name as `license_name`.
        pipeline_tag: the hub's name for the task of the model.
        about_pubmed: whether the text is from PubMed, so biomedical and English. The language of other text is unknown.
        known: further keys of the hub; a key with the value None is left out.
    """
    head: dict[str, Any] = {}
    if license is not None:
        head["license"] = license if license in LICENSES.split() else "other"
        if head["license"] != license:
            head["license_name"] = re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-") or "unnamed"
    if about_pubmed:
        head["language"] = "en"
    head |= {"library_name": "transformers", "pipeline_tag": pipeline_tag}
    head["tags"] = ["gpt2", *(["biomedical", "pubmed"] if about_pubmed else [])]
    head |= {name: value for name, value in known.items() if value is not None}
    return safe_dump(head, sort_keys=False, allow_unicode=True, width=120)


def emissions(grams: float, source: str, hardware: str) -> dict[str, Any]:
    """Return the entry `co2_eq_emissions`.

    Args:
        grams: grams of CO2-equivalent.
        source: how the grams were computed.
        hardware: hardware of the training.
    """
    stated = {
        "emissions": round(grams, 3),
        "source": source,
        "training_type": "pre-training",
        "hardware_used": hardware,
    }
    return {"co2_eq_emissions": stated}


def model_index(name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entry `model-index`, or nothing if there are no scores.

    Args:
        name: name of the model.
        results: `task`, `dataset` and `metrics` of each score, in the hub's form. Scores on the same set are merged.
    """
    by_set: dict[str, dict[str, Any]] = {}
    for result in results:
        of_set = by_set.setdefault(repr((result["task"], result["dataset"])), {**result, "metrics": []})
        of_set["metrics"] += result["metrics"]
    return {"model-index": [{"name": name, "results": list(by_set.values())}]} if results else {}
