import sys
from pathlib import Path

# For the helpers that lie beside the tests (pytest imports test files by path), and for what the
# benchmarks are made of.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent))
