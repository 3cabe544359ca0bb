"""The names of the ways to choose a range. This module imports nothing, so that `--help` can list them.

A further method is its name here, its function among `calibration.observe.ranges.FIND_RANGE`, and a line in
`docs/int8.md`: the command line, the specs, the search and the tables read these.
"""

from __future__ import annotations

from typing import Literal, get_args

Method = Literal["minmax", "percentile", "entropy", "mse", "mean", "quantile"]
METHODS: tuple[Method, ...] = get_args(Method)

BY_IMAGE: tuple[Method, ...] = ("mean", "quantile")
"""Those that look at images and not at values."""
