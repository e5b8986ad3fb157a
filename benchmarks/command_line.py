"""How long a user waits for the catalogue: `anabranch papers QUERY`, warm, beside the interpreter and its libraries alone.

Run: ``python benchmarks/command_line.py``. Whole processes, in turn, medians.
"""

from __future__ import annotations

import subprocess
import sys

from anabranch.lab import time_pairs

OURS = [sys.executable, "-m", "anabranch.cli", "papers", "network traffic", "--json"]
PEER = [sys.executable, "-c", "import typer, rich.console, rich.table, sqlite3"]


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    timing = time_pairs(lambda: run(OURS), lambda: run(PEER), pairs=15)
    ours, peer = sorted(timing.ours_s)[7], sorted(timing.peer_s)[7]
    print(f"anabranch papers QUERY      {ours:.3f} s")
    print(f"its libraries' import alone {peer:.3f} s")
    print(f"ratio                       {ours / peer:.2f}")


if __name__ == "__main__":
    main()
