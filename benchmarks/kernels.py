"""What a profile's kernels do, in plain words."""

import re
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]

# The first that is found in a kernel's name decides.
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
    """What a kernel or operator of this name does."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, kernel)), _OTHER)


def by_kind(rows: Iterable[Row]) -> list[Row]:
    """A profile's rows (`case` "group: kernel", `part`, `seconds`, `calls`) summed by kind, the largest first.

    What the profile did not list is under everything else, without a number of calls.
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
        whole = sum(row["seconds"] for row in rows) / listed
        group = rows[0]["case"].partition(": ")[0]
        found = sums.setdefault(_OTHER, {"case": f"{group}: {_OTHER}", "part": 0.0, "seconds": 0.0})
        found.pop("calls", None)
        found["part"] += 1 - listed
        found["seconds"] += (1 - listed) * whole
    return sorted(sums.values(), key=lambda row: -row["part"])
