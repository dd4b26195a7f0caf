"""Runs the benchmarks: `python tests/benchmarks/run.py [NAME ...] [--quick] [--report]`.

Prints tables and writes build/bench/NAME.json. With `--report` it measures nothing, and puts
what was written into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "benchmarks"), str(ROOT / "tests")]

from shoal_bench import report  # noqa: E402
from shoal_bench.figures import Result, figures_table, load, render, save  # noqa: E402

NAMES = (
    "router",
    "gateway",
    "agent",
    "runtimes",
    "split",
    "plan",
    "pipeline",
    "batch",
    "failover",
    "overload",
    "offload",
    "slow",
)
RESULTS = ROOT / "build" / "bench"
DOCUMENT = ROOT / "docs" / "benchmarks.md"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure Shoal beside its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (all)")
    parser.add_argument("--quick", action="store_true", help="about a minute each, less exact")
    parser.add_argument("--report", action="store_true", help="update docs/benchmarks.md only")
    options = parser.parse_args()
    names = options.names or NAMES
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}: choose from {', '.join(NAMES)}")
    if options.report:
        return write_report(names)
    for name in names:
        module = importlib.import_module(f"shoal_bench.{name}.bench")
        show(module.run(quick=options.quick, say=say))
    return 0


def say(line: str) -> None:
    """Progress, apart from the tables."""
    print(line, file=sys.stderr, flush=True)


def show(result: Result) -> None:
    """Print a result and write its file."""
    for table in (*result.tables, figures_table(result.figures)):
        print(render(table), end="\n\n")
    for note in result.notes:
        print(f"- {note}")
    print(f"\nWritten to {save(result, RESULTS).relative_to(ROOT)}\n", flush=True)


def write_report(names: tuple[str, ...] | list[str]) -> int:
    """Update the document from the files that are there."""
    paths = [path for name in names if (path := RESULTS / f"{name}.json").exists()]
    if not paths:
        print("nothing was measured yet: run 'make bench' first", file=sys.stderr)
        return 1
    before = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    DOCUMENT.parent.mkdir(parents=True, exist_ok=True)
    DOCUMENT.write_text(report.update(before, map(load, paths)))
    print(f"{DOCUMENT.relative_to(ROOT)} updated from {', '.join(p.name for p in paths)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
