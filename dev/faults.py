"""A bench of faults: what happens to a tool that is killed, starved or given a wrong folder.

Every row is a tool on tiny inputs, to which something is done: how it ended, what it said, what was
lost. The table stands in docs/reliability.md. A row is as it should be when the process ended with
the code that is expected, in one line and without a traceback, left no process and no half-written
file behind, and lost nothing: a resumed training ends with the bits of one that nothing happened
to.
"""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from fault_bench import Bench, Row
from fault_processes import ROOT, can_mount
from fault_tools import tool_rows
from fault_trainings import training_rows

from reporting.tables import markdown_table, write_between
from training.cli import ToolParser, run_tool
from training.progress import progress

MARKS = ("<!-- faults -->", "<!-- end of faults -->")
PAGE = ROOT / "docs" / "reliability.md"
TITLES = ("what is done", "to", "exit", "its line", "lost", "seconds", "as it should be")
EXAMPLES = """\
examples:
  python dev/faults.py                        # the whole table, into docs/reliability.md
  python dev/faults.py --rows 'SIGTERM*'      # these rows of it alone
  python dev/faults.py --rows 'killed*' --print
"""


def all_rows(bench: Bench) -> Iterator[tuple[str, Callable[[], Row]]]:
    """(name, what makes the row); those that need mounts are told by :func:`make_row`."""
    return chain(training_rows(bench), tool_rows(bench))


def make_row(name: str, make: Callable[[], Row], mounts: bool) -> Row:
    if not mounts and ("file system" in name or name.startswith("shm ")):
        tool = name.split()[-1]
        return Row(name.removesuffix(tool), tool, "", "this machine mounts nothing for this user",
                   "not tried", 0.0, True)  # fmt: skip
    try:
        return make()
    except Exception as error:  # the bench's own mistake is a row, too
        return Row(name, "", "", f"{type(error).__name__}: {error}", "", 0.0, False)


def main() -> int:
    parser = ToolParser(__doc__, EXAMPLES)
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", help="of their names: 'killed*'")
    parser.add_argument("--print", action="store_true", help="to the terminal, not to the page")
    arguments = parser.parse_args()
    mounts = can_mount()
    table = {} if arguments.print else read_page()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        chosen = [
            (name, make)
            for name, make in all_rows(bench)
            if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.rows or ["*"])
        ]
        if not arguments.rows:
            table = {}
        for name, make in progress(chosen, "faults", unit="row"):
            row = make_row(name, make, mounts)
            line = markdown_table(TITLES, [row.cells(bench.home)]).splitlines()[-1]
            table[row.done, row.tool] = line
            if arguments.print:
                print(line, flush=True)
    lines = list(table.values())
    wrong = sum(not line.endswith("| yes |") for line in lines)
    said = f"{len(lines)} rows, {wrong} not as they should be."
    print(said)
    if not arguments.print:
        write_page(said, lines)
    return 1 if wrong else 0


def read_page() -> dict[tuple[str, str], str]:
    """The page's rows, by what is done and to what."""
    text = PAGE.read_text(encoding="utf-8").partition(MARKS[0])[2].partition(MARKS[1])[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    cells = (line.strip("| ").split(" | ") for line in lines)
    return {(done, tool): line for (done, tool, *_), line in zip(cells, lines, strict=True)}


def write_page(said: str, lines: list[str]) -> None:
    table = "\n".join([markdown_table(TITLES, []), *lines])
    write_between(PAGE, MARKS, f"{said}\n\n{table}")


if __name__ == "__main__":
    raise SystemExit(run_tool(main))
