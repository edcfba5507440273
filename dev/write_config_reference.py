"""Write docs/configuration.md, the reference of every key, from the schemas of the configs.

Defaults and allowed values come from ``detection/schema.py`` and ``segmentation/schema.py``, what
each key does from ``dev/config_descriptions.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from backbones.errors import InputError, listed
from detection.schema import SCHEMA, TORCHVISION_ONLY
from segmentation.schema import SCHEMA as SEGMENTATION_SCHEMA
from training.cli import ToolParser, run_tool
from training.config_keys import Key

EXAMPLES = """
examples:
  python dev/write_config_reference.py
  python dev/write_config_reference.py --check   # exit code 1 if the page is out of date
"""
DESCRIPTIONS = Path(__file__).parent / "config_descriptions.yaml"
HEAD = """# Configuration

Every key of a config, with its default, the values it may have and what it does: first those of
detection, then those of [segmentation](#segmentation). Set a key in a config file, or at the end of
the command:

```bash
fcmae train --config-file quick/mask_rcnn_convnextv2_atto_fcmae_quick.yaml SOLVER.MAX_ITER 1000
```

A key that detectron2 has keeps its name, type and meaning. A misspelt key, a wrong type or a bad
value is an error. All errors are listed at once, each with the closest known key and the allowed
values. Where the torchvision engine takes fewer values than detectron2, the description says which.
"""
SEGMENTATION = """
## Segmentation

The keys of a config for `fcmae segment`.
"""


def render() -> str:
    """The page.

    Raises:
        InputError: naming keys without a description, and descriptions without a key.
    """
    described = yaml.safe_load(DESCRIPTIONS.read_text(encoding="utf-8"))
    detection, segmentation = described["detection"], described["segmentation"]
    known = {**detection, **segmentation}
    problems = [f"{key} has no description" for key in SCHEMA if key not in detection]
    problems += [f"{key} has no description" for key in SEGMENTATION_SCHEMA if key not in known]
    problems += [f"{key} is described, but no key" for key in detection if key not in SCHEMA]
    problems += [
        f"{key} is described, but no key" for key in segmentation if key not in SEGMENTATION_SCHEMA
    ]
    if problems:
        raise InputError(listed(problems, str(DESCRIPTIONS)))
    return "".join(
        [
            HEAD,
            *_tables(SCHEMA, detection, "##"),
            SEGMENTATION,
            *_tables(SEGMENTATION_SCHEMA, known, "###"),
        ]
    )


def _tables(schema: Mapping[str, Key], described: Mapping[str, str], level: str) -> list[str]:
    """A heading and a table for each section of a schema."""
    sections: dict[str, list[str]] = {}
    for name in schema:
        sections.setdefault(name.rpartition(".")[0] or "Top level", []).append(name)
    lines = []
    for section, names in sections.items():
        lines.append(f"\n{level} {section}\n\n| key | default | allowed | what it does |\n")
        lines.append("| --- | --- | --- | --- |\n")
        for name in names:
            key, words = schema[name], described[name]
            if schema is SCHEMA and (limits := TORCHVISION_ONLY.get(name)):
                words += f" torchvision: only {', '.join(map(repr, limits))}."
            cells = (f"`{name.rpartition('.')[2]}`", f"`{key.default!r}`", key.allowed, words)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return lines


def main() -> None:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("--output", type=Path, default=Path("docs/configuration.md"))
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()
    page = render()
    if not options.check:
        options.output.write_text(page, encoding="utf-8")
    elif options.output.read_text(encoding="utf-8") != page:
        raise InputError(f"{options.output} is out of date: run dev/write_config_reference.py")
    print(options.output)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
