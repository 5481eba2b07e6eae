"""The numbers that the MagicDistillation paper states for the rows of our tables (arXiv 2503.13319).

VBench is the average of seven scores on the paper's portrait benchmark (its Table 1), higher is better. FVD is the
Frechet video distance on VFHQ, HDTF and Celeb-V, lower is better. The paper prints one table per data set; the three
numbers are in the order of these tables.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """What the paper measured for one method at one number of steps.

    Attributes:
        vbench: average VBench score; None if the paper's Table 1 has no such row.
        fvd: FVD on the three data sets; empty if the paper states none.
    """

    vbench: float | None = None
    fvd: tuple[float, ...] = ()


PAPER = {
    "euler-28": PaperRow(0.8107, (170.07, 456.39, 698.52)),
    "euler-4": PaperRow(0.6768, (325.08, 1051.29, 1042.60)),
    "lcm-4": PaperRow(0.6915, (598.99, 1600.59, 744.96)),
    "dmd-4": PaperRow(None, (285.95, 364.85, 661.75)),
    "dmd2-4": PaperRow(0.8063, (249.22, 246.78, 682.64)),
    "w2s-4": PaperRow(0.8219, (163.40, 233.80, 542.72)),
    "supervised-4": PaperRow(0.7474, (239.28, 240.02, 695.65)),
    "euler-1": PaperRow(0.6169),
    "lcm-1": PaperRow(0.6817),
    "dmd2-1": PaperRow(0.7189),
    "one_step-1": PaperRow(0.7448),
}
