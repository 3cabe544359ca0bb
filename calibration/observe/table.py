"""CalibrationTable: what a data set does inside a network, in a file that people can read and compare.

A table holds each tensor's whole histogram (see `calibration.observers`), so it answers for every method and
every grid, and two tables of the same network add up: machines can calibrate on parts of a data set each.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.observe.fingerprint import add_hashes
from resnet_export.calibration.observe.histogram import BINS, FINITE, NEGATIVE, Counts, TensorStats
from resnet_export.calibration.observe.methods import Method
from resnet_export.calibration.observe.ranges import Range, find_range
from resnet_export.runtime.bundle.schema import Sha256, Struct
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.progress import Progress, silent

SCHEMA_VERSION: Literal[1] = 1
_OCTAVE = 128  # bins with the same sign and exponent
_BIAS = 127  # of float32's exponent

Octaves = dict[str, str]


class Histogram(Struct, frozen=True):
    """The counts, by sign and octave.

    `positive["-3"]` counts the values in [2**-3, 2**-2), in 128 bins of equal width, as decimal numbers with
    spaces between them; trailing zeros and empty octaves are left out. `zeros` counts both zeros and the
    denormals below 2**-133.
    """

    zeros: Annotated[int, msgspec.Meta(ge=0)]
    positive: Octaves
    negative: Octaves

    @classmethod
    def of(cls, counts: Counts) -> Histogram:
        """Write counts, int64 [65536]."""
        return cls(
            zeros=int(counts[0] + counts[NEGATIVE]),
            positive=_octaves(counts[:FINITE]),
            negative=_octaves(counts[NEGATIVE : NEGATIVE + FINITE]),
        )

    def counts(self) -> Counts:
        """Return the counts, int64 [65536]. Raises RequestError where they are no whole numbers."""
        counts = np.zeros(BINS, np.int64)
        counts[0] = self.zeros
        for start, octaves in ((0, self.positive), (NEGATIVE, self.negative)):
            for exponent, line in octaves.items():
                _fill(counts, start, exponent, line)
        return counts


class TensorEntry(Struct, frozen=True):
    """One tensor: how many values it had, the exact least and greatest, and the range that each method keeps.

    `lows` and `highs` are the histograms of the least and of the greatest value of each image.
    """

    count: Annotated[int, msgspec.Meta(ge=1)]
    low: float
    high: float
    ranges: dict[Method, Range]
    histogram: Histogram
    lows: Histogram
    highs: Histogram

    def stats(self) -> TensorStats:
        """Return the histogram as arrays. Raises RequestError when it does not add up to `count`."""
        extremes = (self.lows.counts(), self.highs.counts())
        stats = TensorStats(
            self.histogram.counts(),
            float(np.float32(self.low)),
            float(np.float32(self.high)),
            *(Counter({int(bin): int(counts[bin]) for bin in np.flatnonzero(counts)}) for counts in extremes),
        )
        if stats.count != self.count or not self.low <= self.high:
            raise RequestError(
                f"a histogram adds up to {stats.count} of {self.count} values in [{self.low}, {self.high}]; "
                "the calibration table was changed by hand: calibrate again"
            )
        return stats


class Factors(Struct, frozen=True):
    """One rescaling of channels (`plan.Equalization`) that was done to the graph before it was observed.

    `factors` are positive float32 numbers as decimals, one per channel, with spaces between them.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    factors: str

    @classmethod
    def of(
        cls, producers: tuple[str, ...], consumers: tuple[str, ...], factors: NDArray[np.float32]
    ) -> Factors:
        """Write the factors, float32 [channels], so that they read back bit for bit."""
        return cls(producers=producers, consumers=consumers, factors=" ".join(map(str, factors)))

    def array(self) -> NDArray[np.float32]:
        """Return the factors, float32 [channels]. Raises RequestError when they are none that a channel can have."""
        try:
            found = np.array(self.factors.split(), np.float32)
        except ValueError as error:
            raise RequestError(
                f"the equalization of {', '.join(self.producers)} holds no numbers: {error}"
            ) from error
        if not (np.isfinite(found) & (found > 0)).all():
            raise RequestError(
                f"the equalization of {', '.join(self.producers)} holds factors from {found.min()} to {found.max()}; "
                "only positive, finite ones leave a network's function as it is: calibrate again"
            )
        return found


class CalibrationTable(Struct, frozen=True, omit_defaults=True):
    """The whole of `calibration.json`.

    `graph` is the hash of the float graph that was exported, `observed` that of the graph that was run: another
    one where `equalization` rescaled it. `data` is the hash of the images, whatever their order. `method` is
    what the ranges were asked for first; tensors are in graph order.
    """

    schema: Literal[1]
    graph: Sha256
    observed: Sha256
    data: Sha256
    images: Annotated[int, msgspec.Meta(ge=1)]
    method: Method
    tensors: dict[str, TensorEntry]
    equalization: tuple[Factors, ...] = ()

    def range(self, tensor: str, method: Method | None = None) -> Range:
        """Return the range of a tensor, from the table where it has it and else from the histogram.

        Raises RequestError for a tensor that the table does not have.
        """
        entry = self.tensors.get(tensor)
        if entry is None:
            raise RequestError(
                f"the calibration table has no tensor {tensor!r}; calibrate this network again"
            )
        method = method or self.method
        return entry.ranges[method] if method in entry.ranges else find_range(entry.stats(), method)

    def with_methods(self, methods: tuple[Method, ...]) -> CalibrationTable:
        """Return the table with the ranges of `methods` worked out for every tensor, so that none is twice."""
        return msgspec.structs.replace(
            self,
            tensors={
                name: msgspec.structs.replace(
                    entry, ranges={method: self.range(name, method) for method in (*entry.ranges, *methods)}
                )
                for name, entry in self.tensors.items()
            },
        )


def build(
    stats: Mapping[str, TensorStats],
    *,
    graph: str,
    observed: str,
    data: str,
    images: int,
    methods: tuple[Method, ...],
    progress: Progress = silent,
) -> CalibrationTable:
    """Make a table of what was observed; `methods` are worked out now, the first is the table's own.

    Raises RequestError, naming the tensor, when one was never seen or was infinite or NaN.
    """
    tensors: dict[str, TensorEntry] = {}
    for name, one in progress(stats.items(), "Choosing ranges", len(stats)):
        try:
            ranges = {method: find_range(one, method) for method in methods}
        except RequestError as error:
            raise RequestError(f"tensor {name!r}: {error}") from error
        tensors[name] = TensorEntry(
            count=one.count,
            low=_shortest(one.low),
            high=_shortest(one.high),
            ranges=ranges,
            histogram=Histogram.of(one.counts),
            lows=Histogram.of(_dense(one.lows)),
            highs=Histogram.of(_dense(one.highs)),
        )
    return CalibrationTable(
        schema=SCHEMA_VERSION,
        graph=graph,
        observed=observed,
        data=data,
        images=images,
        method=methods[0],
        tensors=tensors,
    )


def merge(first: CalibrationTable, second: CalibrationTable) -> CalibrationTable:
    """Return the table of both data sets together: the same as if one run had seen all their images.

    Raises RequestError when the tables are of different graphs or observe different tensors.
    """
    for what, one, other in (
        ("graph", first.graph, second.graph),
        ("observed graph", first.observed, second.observed),
    ):
        if one != other:
            raise RequestError(
                f"the tables are of different networks: {what} {one} and {other}; merge tables of one"
            )
    if list(first.tensors) != list(second.tensors):
        raise RequestError("the tables observe different tensors; make both with the same version")
    merged = build(
        {name: entry.stats().merge(second.tensors[name].stats()) for name, entry in first.tensors.items()},
        graph=first.graph,
        observed=first.observed,
        data=add_hashes(first.data, second.data),
        images=first.images + second.images,
        methods=tuple(dict.fromkeys((first.method, *next(iter(first.tensors.values())).ranges))),
    )
    return msgspec.structs.replace(merged, equalization=first.equalization)


def require_graph(table: CalibrationTable, *, graph: str, observed: str | None = None) -> None:
    """Check that a table is of the graph with the hash `graph`, run as `observed` (None: not to be checked).

    Raises RequestError with both hashes when it is not.
    """
    for found, expected, what in (
        (table.graph, graph, "graph"),
        (table.observed, observed, "equalized graph"),
    ):
        if expected is not None and found != expected:
            raise RequestError(
                f"the calibration table is of the {what} {found}, this network's is {expected} (another network, "
                "image size or kind of input has another graph); calibrate this one, or give the table that was made "
                "for it"
            )


def encode_table(table: CalibrationTable) -> bytes:
    """Return the bytes of `calibration.json`: indented JSON, one line to the octave, with a final newline."""
    return msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n"


def decode_table(data: bytes) -> CalibrationTable:
    """Parse a table and check that its histograms add up. Raises RequestError."""
    try:
        table = msgspec.json.decode(data, type=CalibrationTable)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"this is not a calibration table of schema {SCHEMA_VERSION}: {error}") from error
    for name, entry in table.tensors.items():
        try:
            entry.stats()
        except RequestError as error:
            raise RequestError(f"tensor {name!r}: {error}") from error
    for one in table.equalization:
        one.array()
    return table


def read_table(path: str | os.PathLike[str]) -> CalibrationTable:
    """Read a table from a file. Raises RequestError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RequestError(f"the calibration table {path} cannot be read: {error.strerror}") from error
    try:
        return decode_table(data)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error


def _dense(extremes: Counter[int]) -> Counts:
    counts = np.zeros(BINS, np.int64)
    for bin, number in extremes.items():
        counts[bin] = number
    return counts


def _octaves(counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Octaves:
    lines: Octaves = {}
    for field, bins in enumerate(counts.reshape(-1, _OCTAVE)):
        bins = np.concatenate(([0], bins[1:])) if field == 0 else bins  # zeros are counted apart
        if bins.any():
            filled = bins[: np.flatnonzero(bins)[-1] + 1]
            lines[str(field - _BIAS)] = " ".join(map(str, filled.tolist()))
    return lines


def _fill(
    counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]], start: int, exponent: str, line: str
) -> None:
    try:
        first = (int(exponent) + _BIAS) * _OCTAVE
        bins = np.array([int(number) for number in line.split(" ")], np.int64)
    except (ValueError, OverflowError) as error:
        raise RequestError(f"octave {exponent!r} does not hold whole numbers: {error}") from error
    if not 0 <= first < FINITE or len(bins) > _OCTAVE or (bins < 0).any():
        raise RequestError(
            f"octave {exponent!r} holds {len(bins)} bins, least {bins.min()}; at most {_OCTAVE} counts were expected, "
            f"for an exponent from {-_BIAS} to {_BIAS}"
        )
    counts[start + first : start + first + len(bins)] += bins


def _shortest(value: float) -> float:
    """The shortest decimal that reads back as the same float32."""
    return float(str(np.float32(value)))
