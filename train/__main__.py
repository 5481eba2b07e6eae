"""`python -m train`: the `magicdistill` command for launchers such as `torchrun -m train`."""

from .cli import main

if __name__ == "__main__":
    main()
