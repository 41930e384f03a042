"""benchmarks/gpu_transfer.py, run over the host's copies: its logic is not first tried on a GPU."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from programs import BENCHMARKS
from programs import run as run_program

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return run_program(BENCHMARKS / "gpu_transfer.py", *words)


def test_it_measures_and_draws(tmp_path: Path) -> None:
    numbers, picture = tmp_path / "out.json", tmp_path / "out.png"
    size = ["--megabytes", "4", "--rounds", "1"]
    done = run("--device", "host", *size, "--json", numbers, "--png", picture)
    assert done.returncode == 0, done.stderr
    results = json.loads(numbers.read_text())
    (rows,) = results["by_mode"].values()
    assert len(rows) == 7
    assert all(row["gather_gbps"] > 0 and row["scatter_gbps"] > 0 for row in rows)
    assert len(results["beside_a_matrix_product"]) == 3
    assert all(row["gather_slowdown"] > 0.1 for row in results["beside_a_matrix_product"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "again.png"
    assert run("--draw", numbers, "--png", again).returncode == 0
    assert again.read_bytes() == picture.read_bytes()


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run("--device", "cuda:0", "--json", tmp_path / "out.json")
    if done.returncode == 0:  # there is one
        return
    assert done.stderr.startswith("error: no CUDA device: ")


def test_the_check_of_a_gpu_says_why_it_is_skipped(tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "grep"):  # and no nvidia-smi
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    command = [tmp_path / "bash", ROOT / "scripts" / "gpu-check.sh"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert "skipped, there is no CUDA device here" in done.stdout
