"""The docs' tables of settings equal the fields of the dataclasses; `python tests/docs/test_tables.py` rewrites them.

A page names the fields of a table in a comment: `<!-- settings: Validation; TrainSettings lr epochs -->`.
"""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from emi.cli.options import shown_default
from emi.finetuning.settings import FinetuneSettings
from extract.settings import ExtractSettings
from train_head.data.label_format import LabelColumns
from train_head.sweep.settings import SweepSettings
from train_head.training.settings import TrainSettings
from train_head.validation import Validation

KINDS = (ExtractSettings, TrainSettings, LabelColumns, Validation, SweepSettings, FinetuneSettings)
SETTINGS = {kind.__name__: kind for kind in KINDS}
PAGES = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
BLOCK = re.compile(r"(?<=<!-- settings: )(.*?) -->\n.*?(?=<!-- end -->)", re.DOTALL)


def table(spec: str) -> str:
    """Return the table of settings that a page names, without mappings, which have tables of their own."""
    rows = ["| option | effect | default |", "|---|---|---|"]
    for part in spec.split(";"):
        kind, *wanted = part.split()
        for field in fields(SETTINGS[kind]):
            if (field.name in wanted or not wanted) and field.default is not MISSING:
                option = field.metadata.get("option", field.name)
                typed = f"--set {field.name}=…" if option is None else f"--{option.replace('_', '-')}"
                metavar = field.metadata.get("metavar")
                effect = re.sub(r"([*|])", r"\\\1", field.metadata["help"])
                rows.append(f"| `{typed}{f' {metavar}' if metavar else ''}` | {effect} | {shown_default(field)} |")
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """Return a page with its tables made anew."""
    return BLOCK.sub(lambda block: f"{block[1]} -->\n\n{table(block[1])}\n\n", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_settings_are_those_of_the_dataclasses(page):
    text = page.read_text(encoding="utf-8")
    assert text == with_tables(text), "run: python tests/docs/test_tables.py"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_setting_that_has_an_option_is_in_the_docs(kind):
    docs = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    options = {field.metadata.get("option", field.name) for field in fields(kind)} - {None, "heartbeat"}
    assert [option for option in sorted(options) if f"`--{option.replace('_', '-')}" not in docs] == []


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
