"""A run folder with an index and arms; see tests/inference/conftest.py."""

from tests.inference.conftest import run_with_arm  # noqa: F401
from tests.retrieval.conftest import bert_folder, run_folder  # noqa: F401
