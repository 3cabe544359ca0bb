"""The names of the ways to choose a range. This module imports nothing, so that `--help` can list them.

A further method is its name here, its function among `calibration.observe.ranges.FIND_RANGE`, and a line in
`docs/int8.md`: the command line, the specs, the search and the tables read these.
"""

from __future__ import annotations

from typing import Literal, get_args

Method = Literal["minmax", "percentile", "entropy", "mse", "mean", "quantile"]
METHODS: tuple[Method, ...] = get_args(Method)

TRIED: tuple[Method, ...] = ("minmax", "percentile", "entropy", "mse")
"""Those that the search compares. The others clip whole images, which the SNR over all images counts as a loss even
where every other image gains: they are for networks with heavy-tailed logits, and have to be asked for."""
