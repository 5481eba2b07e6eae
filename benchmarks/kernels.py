"""Sort the kernels of a profile by kind of operation."""

import re
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]

# The first pattern that matches a kernel's name decides its kind.
_KINDS = (
    ("attention", r"sdpa|flash|fmha|attention"),
    ("matrix products", r"nvjet|gemm|cutlass|addmm|::b?mm$"),
    ("casts, copies and concatenations", r"copy|::cat|memcpy|CatArray"),
    (
        "elementwise operations, norms and activations",
        r"elementwise|reduce|norm|softmax|gelu|silu|triton_|::(mul|add|pow|mean|rsqrt)$",
    ),
)
_OTHER = "everything else"


def kind_of(kernel: str) -> str:
    """Return the kind of the kernel or operator with this name."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, kernel)), _OTHER)


def by_kind(rows: Iterable[Row]) -> list[Row]:
    """Sum the rows of a profile by kind, the largest sum first.

    The profile lists only the largest kernels. The time of the others is added to "everything else", which then has
    no number of calls.

    Args:
        rows: one row per kernel with `case` ("group: kernel"), `part` (share of the time), `seconds` and `calls`.
    """
    rows = list(rows)
    sums: dict[str, Row] = {}
    for row in rows:
        group, _, kernel = row["case"].partition(": ")
        kind = kind_of(kernel)
        found = sums.setdefault(kind, {"case": f"{group}: {kind}", "part": 0.0, "seconds": 0.0, "calls": 0})
        for column in ("part", "seconds", "calls"):
            found[column] += row[column]
    listed = sum(row["part"] for row in rows)
    if rows and listed < 1:
        total = sum(row["seconds"] for row in rows) / listed
        group = rows[0]["case"].partition(": ")[0]
        found = sums.setdefault(_OTHER, {"case": f"{group}: {_OTHER}", "part": 0.0, "seconds": 0.0})
        found.pop("calls", None)
        found["part"] += 1 - listed
        found["seconds"] += (1 - listed) * total
    return sorted(sums.values(), key=lambda row: -row["part"])
