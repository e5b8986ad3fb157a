"""What happens where torch is not installed."""

import subprocess
import sys

CODE = """
import sys
sys.modules["torch"] = None
import anabranch.worlds
anabranch.worlds.load_fashion_mnist
try:
    anabranch.worlds.GaussianMixture
except ModuleNotFoundError as error:
    print("worlds:", error)
try:
    import anabranch.generative
except ModuleNotFoundError as error:
    print("generative:", error)
"""


def test_the_missing_extra_is_named_and_the_rest_of_worlds_works() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["worlds", "generative"]
    assert all("anabranch[generative]" in line and "CPU-only" in line for line in lines)


def test_torch_is_not_loaded_by_worlds() -> None:
    code = "import sys, anabranch.worlds; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
