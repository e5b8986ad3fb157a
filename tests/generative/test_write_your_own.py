"""The page for researchers: its blocks run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

from support import ROOT


def test_the_page_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "write-your-own.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.splitlines()[0]) < 0.4
