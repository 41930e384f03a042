import sys
from pathlib import Path

# For the helpers that lie beside the tests (pytest imports test files by path).
sys.path.insert(0, str(Path(__file__).parent))
