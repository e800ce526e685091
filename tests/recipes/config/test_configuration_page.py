"""docs/configuration.md agrees with the schema, and `--help` names it."""

import pytest

from configuration_page import PAGE, configuration_page, fields_without_text
from project import ROOT
from recipes.config.schema import FinetuneConfig, TrainConfig


def test_page_is_the_schemas():
    assert PAGE.read_text(encoding="utf-8") == configuration_page(), "run: python tests/helpers/configuration_page.py"


@pytest.mark.parametrize("schema", [TrainConfig, FinetuneConfig])
def test_every_key_is_explained(schema):
    assert not fields_without_text(schema), "describe the key below it in recipes/config/schema.py"


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_help_names_the_page(command):
    assert str(PAGE.relative_to(ROOT)) in (ROOT / f"recipes/{command}.py").read_text(encoding="utf-8").split('"""')[1]
