"""Write the table of docs/real_runs.md from docs/results.json, and add finished runs to that file.

Entries are in the order of the table. One without "box AP" has not been run, and the table says so.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from backbones.whole_files import write_text
from detection.reporting.run import read_run
from reporting.tables import with_between
from training.cli import ToolParser, run_tool

MARKS = ("<!-- results -->", "<!-- end of results -->")
HEAD = "| run | config | engine | box AP | mask AP | date | torch |"
NOT_RUN = "not yet run"
EXAMPLES = """\
examples:
  # after a change of the json
  python dev/write_results_table.py
  # finished runs, which replace the entries of these names or come last
  python dev/write_results_table.py --run "nuclei, random weights" runs/nuclei_scratch

exit code: 0; 1 for a folder without a finished run, or with --check for a table that is not the
json's; 2 on wrong usage
"""


def parse() -> argparse.Namespace:
    parser = ToolParser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--page", type=Path, default=Path("docs/real_runs.md"))
    add("--results", type=Path, default=Path("docs/results.json"))
    add("--run", nargs=2, action="append", default=[], metavar=("NAME", "DIR"))
    add("--check", action="store_true", help="compare, write nothing")
    return parser.parse_args()


def entry_of(name: str, folder: Path) -> dict[str, Any]:
    """What the table and its reader need of a finished run: numbers, and how they came about."""
    run = read_run(folder)
    facts = {"config": "config_file", "engine": "engine", "command": "command", "date": "started"}
    entry = {"name": name} | {key: run.fact(fact) for key, fact in facts.items()}
    entry |= {key: run.fact(key) for key in ("device", "versions")}
    entry |= {"box AP": run.metric("bbox", "AP"), "mask AP": run.metric("segm", "AP")}
    required = [key for key in entry if key != "mask AP"]  # boxes alone have none
    if missing := [key for key in required if entry[key] is None]:
        raise InputError(
            f"{folder} does not record {', '.join(missing)}: give the OUTPUT_DIR of a run of "
            "tools/train_net.py that has been evaluated"
        )
    return entry | {"date": str(entry["date"])[:10]}


def row(entry: dict[str, Any]) -> str:
    """A line of the table."""
    aps = [entry.get(key) for key in ("box AP", "mask AP")]
    if aps[0] is None:
        shown = [NOT_RUN] * 2
    else:
        shown = ["" if ap is None else f"{ap:.1f}" for ap in aps]
    name = entry["name"].replace("|", "\\|")
    config = entry["config"].removeprefix("det_configs/")
    cells = [name, f"`{config}`", entry["engine"], *shown]
    cells += [entry.get("date", ""), entry.get("versions", {}).get("torch", "")]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    options = parse()
    entries = {
        entry["name"]: entry for entry in json.loads(options.results.read_text(encoding="utf-8"))
    }
    entries |= {name: entry_of(name, Path(folder)) for name, folder in options.run}
    lines = [HEAD, "| --- | --- | --- | ---: | ---: | --- | --- |", *map(row, entries.values())]
    written = with_between(options.page, MARKS, "\n".join(lines))
    if options.check:
        if options.page.read_text(encoding="utf-8") != written:
            raise InputError(f"{options.page} is out of date: run dev/write_results_table.py")
        return
    if options.run:
        text = json.dumps(list(entries.values()), indent=2, ensure_ascii=False)
        options.results.write_text(text + "\n", encoding="utf-8")
    write_text(options.page, written)
    print(options.page)


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
