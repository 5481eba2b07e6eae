"""Run the `magicdistill` command with `python -m train`, also from launchers such as `torchrun -m train`."""

from .cli import main

if __name__ == "__main__":
    main()
