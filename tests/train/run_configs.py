"""Script for launchers: trains the given configurations one after another (imports are paid once)."""

import sys
from pathlib import Path

from train.distributed import prepare_environment

prepare_environment()

from train.config import load_config  # noqa: E402 - DeepSpeed reads the environment when it is imported
from train.loop import train  # noqa: E402

if __name__ == "__main__":
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    for path in paths:
        train(load_config(Path(path)), resume="--resume" in sys.argv)
