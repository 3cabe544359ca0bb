"""Which row of the zoo named tensors are of, which is the classifier, and how they differ where they fit none."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from resnet_export.exporter.models.naming import Translation, translate
from resnet_export.exporter.models.resnet import construct
from resnet_export.exporter.models.zoo import ZOO, Architecture
from resnet_export.runtime.errors import CheckpointError, KeyMismatchError

__all__ = ["Match", "Shapes", "recognize"]

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

# Counts training steps; inference does not read it, and checkpoints older than PyTorch 0.4.1 lack it.
_OPTIONAL = "num_batches_tracked"
# How many models an averaged one (torch.optim.swa_utils.AveragedModel) is the average of: not a parameter.
_BOOKKEEPING = frozenset({"n_averaged", _OPTIONAL})
_AVERAGED = re.compile(r"ema|averag|swa|shadow|teacher|momentum|encoder_k", re.IGNORECASE)
_BLOCK = re.compile(r"(?:layer(\d)|stages\.(\d)\.blocks)\.(\d{1,4})\.")
_HEADS = (
    "fc",
    "head",
    "classifier",
    "last_linear",
    "linear",
    "cls",
    "logits",
    "predictions",
    "probs",
    "output",
)
_PARAMETERS = ("weight", "bias", "running_mean", "running_var", "kernel", "kernel:0", "gamma", "beta")
_WEIGHTS = ("weight", "kernel", "kernel:0")
# A part of the network by its name, whoever named it.
_PART = re.compile(
    r"(?:layer|stage|block|res|conv|bn|norm|downsample|shortcut|stem|maxpool|avgpool|attn)s?_?\d*"
)
_QUANTIZED = re.compile(
    r"activation_post_process|fake_quant|\bzero_point\b|\bscale\b|_packed_params|eps_?quant"
)
_ADAPTED = re.compile(r"\blora_|\blora\b|adapter")
_SHOWN = 4
# A network has more named tensors than this; fewer are chance.
_FEWEST = 12


@dataclass(frozen=True)
class Match:
    """A row that tensors fit.

    Attributes:
        row: of the zoo.
        num_classes: outputs of the classifier.
        in_channels: of the first convolution.
        names: the reference's name of each tensor → its name in the file; conv biases and kernels that have to be
            converted included.
        head: the reference's names of the classifier's weight and bias.
        biased: convolutions with a bias → the normalization behind, which can take it.
        folded: there are no normalizations: they are in the convolutions.
        notices: what was assumed or left out, as sentences.
    """

    row: Architecture
    num_classes: int
    in_channels: int
    names: Mapping[str, str]
    head: tuple[str, str]
    biased: Mapping[str, str]
    folded: bool
    notices: tuple[str, ...]


@cache
def _expected(row: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes without the step counters, with one class and one input channel."""
    network = construct(row, 1, 1)
    return {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if not name.endswith(_OPTIONAL)
    }


def _head_names(row: Architecture) -> tuple[str, str]:
    return ("head.fc.weight", "head.fc.bias") if row.preact else ("fc.weight", "fc.bias")


def _stem_name(row: Architecture) -> str:
    return "stem.conv.weight" if row.preact else "conv1.0.weight" if row.stem == "deep" else "conv1.weight"


def recognize(
    found: Shapes,
    *,
    path: object,
    prefix: str = "",
    asked: Architecture | None = None,
    named: str | None = None,
) -> Match:
    """Return the row that tensors of these shapes are of.

    Args:
        found: shapes by the names of the file.
        path: the file, for messages.
        prefix: what has to stand before the network's names, where the file holds several networks.
        asked: the row that has to be it.
        named: the name of an architecture that the file gives itself.

    Raises CheckpointError when the tensors are of no row, of another than `asked`, of several networks, or of
    a kind that cannot be converted, and KeyMismatchError, which lists every key, when they nearly fit.
    """
    _refuse_kinds(found, path)
    translation, notices = _choose(translate(found), found, prefix, path)
    core, biased, folded = _core(translation, found)
    rows = [row for row in ZOO.values() if _same(core, row)]
    if not rows:
        raise _mismatch(core, translation, found, asked, path)
    row, said = _choose_row(rows, translation, asked, named, path)
    weight, bias = _find_head(row, translation, found, path)
    used = {*translation.names.values(), weight, bias}
    unexpected, left = _sort_others(translation, found, used)
    if unexpected:
        raise KeyMismatchError(
            f"{path} fits {row.name} but for {len(unexpected)} tensors that it has no place for ({_some(unexpected)}); "
            f"the network computes something else: build it with --model MODULE:FACTORY",
            missing=(),
            unexpected=tuple(unexpected),
            mis_shaped=(),
        )
    if left:
        said += (
            f"{len(left)} tensors of {path} belong to no layer of the network and were left out: {_some(left)}",
        )
    names = dict(translation.names) | dict(zip(_head_names(row), (weight, bias), strict=True))
    return Match(
        row=row,
        num_classes=_classes(weight, found),
        in_channels=core[_stem_name(row)][1],
        names=names,
        head=_head_names(row),
        biased=biased,
        folded=folded,
        notices=(*notices, *said),
    )


def _refuse_kinds(found: Shapes, path: object) -> None:
    for name in found:
        if _QUANTIZED.search(name):
            raise CheckpointError(
                f"{path} is of quantization-aware training: it has observers and fake quantization ({name}), whose "
                "rounding is part of what the network computes; give the float checkpoint, or convert it with --model"
            )
        if _ADAPTED.search(name):
            raise CheckpointError(
                f"{path} has the tensors of an adapter ({name}); merge them into the weights and save it again"
            )


def _choose(
    translations: Sequence[Translation], found: Shapes, prefix: str, path: object
) -> tuple[Translation, tuple[str, ...]]:
    """The best translation; where several networks have equally many tensors, the plain one of plain and averaged."""
    fitting = [one for one in translations if one.prefix.startswith(prefix)]
    if not fitting or len(fitting[0].names) < _FEWEST:
        raise CheckpointError(
            f"{path} is of no known architecture ({len(found)} tensors, few with a name that a ResNet has: "
            f"{_some(list(found))}); name them with --key-map, or build the network with --model MODULE:FACTORY"
        )
    best = [
        one for one in fitting if one.scheme is fitting[0].scheme and len(one.names) == len(fitting[0].names)
    ]
    plain = [one for one in best if not _AVERAGED.search(one.prefix)] or best
    if len(plain) > 1:
        places = ", ".join(repr(one.prefix.rstrip(".")) for one in plain)
        raise CheckpointError(
            f"{path} holds several networks, {places}, and nothing tells which is meant; choose one with "
            "--checkpoint-key"
        )
    others = [one.prefix.rstrip(".") for one in best if one is not plain[0]]
    notices = tuple(
        f"the file also holds {other!r}, which was not used; the weights are those under "
        f"{plain[0].prefix.rstrip('.')!r}, --checkpoint-key {other} takes the others"
        for other in others
    )
    return plain[0], notices


def _core(translation: Translation, found: Shapes) -> tuple[dict[str, tuple[int, ...]], dict[str, str], bool]:
    """Shapes by the reference's names once converted, biased convolutions, and whether normalizations are folded."""
    core = {name: found[key] for name, key in translation.names.items() if not name.endswith(_OPTIONAL)}
    for name in [name for name in core if name.endswith(".kernel")]:
        rows, columns, channels, filters = core.pop(name) if len(core[name]) == 4 else (0, 0, 0, 0)
        core[name.removesuffix("kernel") + "weight"] = (filters, channels, rows, columns)
    folded = not any(name.endswith("running_mean") for name in core)
    convolutions = [name.removesuffix(".weight") for name, shape in core.items() if len(shape) == 4]
    biased = {
        conv: norm for conv in convolutions if f"{conv}.bias" in core and (norm := _norm_of(conv)) is not None
    }
    for conv, norm in biased.items():
        out = core.pop(f"{conv}.bias")
        if folded:
            core |= {f"{norm}.{leaf}": out for leaf in ("weight", "bias", "running_mean", "running_var")}
    return core, biased, folded


def _norm_of(conv: str) -> str | None:
    """The normalization behind a convolution of a v1 network, by name."""
    head, _, last = conv.rpartition(".")
    if re.fullmatch(r"conv[1-3]", last):
        return f"{head}.bn{last[-1]}" if head else f"bn{last[-1]}"
    if conv == "conv1.6":
        return "bn1"
    if last.isdigit() and (head.endswith("downsample") or head == "conv1"):
        return f"{head}.{int(last) + 1}"
    return None


def _structure(names: Iterable[str]) -> tuple[int, ...]:
    counts: dict[int, int] = {}
    for match in filter(None, map(_BLOCK.match, names)):
        stage = int(match[1]) - 1 if match[1] else int(match[2])
        counts[stage] = max(counts.get(stage, 0), int(match[3]) + 1)
    return tuple(counts.get(stage, 0) for stage in range(max(counts, default=-1) + 1))


def _same(core: Shapes, row: Architecture) -> bool:
    return _structure(core) == row.layers and not any(_differences(core, row))


def _differences(core: Shapes, row: Architecture) -> tuple[list[str], list[str], list[str]]:
    """Missing names, unexpected names, and sentences about shapes; the classifier aside."""
    expected = {name: shape for name, shape in _expected(row).items() if name not in _head_names(row)}
    stem = _stem_name(row)
    missing = [name for name in expected if name not in core]
    unexpected = [name for name in core if name not in expected]
    shapes = []
    for name, shape in expected.items():
        if name in core and name == stem and len(core[name]) == 4:
            shape = (shape[0], core[name][1], *shape[2:])
        if name in core and core[name] != shape:
            shown = [shape[0], 3, *shape[2:]] if name == stem else list(shape)
            shapes.append(f"{name} is {list(core[name])}, expected {shown}")
    return missing, unexpected, shapes


def _mismatch(
    core: Shapes, translation: Translation, found: Shapes, asked: Architecture | None, path: object
) -> CheckpointError:
    layers = _structure(core)
    rows = [asked] if asked is not None else [row for row in ZOO.values() if row.layers == layers]
    if not rows:
        rows = [row for row in ZOO.values() if len(row.layers) == len(layers)] if len(layers) > 2 else []
    distances = {row.name: sum(map(len, _differences(core, row))) for row in rows}
    if not distances or (asked is None and min(distances.values()) > max(8, len(core) // 3)):
        blocks = "bottleneck" if any(".conv3." in name for name in core) else "basic" if layers else "no"
        return CheckpointError(
            f"{path} is of no known architecture ({len(found)} tensors; {blocks} blocks, "
            f"{'-'.join(map(str, layers)) or '0-0-0-0'} in the stages); see `resnet-export models`, name its tensors "
            "with --key-map, or build the network with --model MODULE:FACTORY"
        )
    row = ZOO.get(min(distances, key=lambda name: distances[name])) or rows[0]
    exact = [other for other in ZOO.values() if other is not row and _same(core, other)] if asked else []
    if exact:
        return CheckpointError(
            f"{path} holds {exact[0].name}, but {row.name} was asked for; leave the architecture out, or "
            f"give a checkpoint of {row.name}"
        )
    missing, unexpected, shapes = _differences(core, row)
    missing += _missing_head(row, translation, found)
    others = [key for key in translation.others if key.rpartition(".")[2] not in _BOOKKEEPING]
    parts = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes}
    report = "; ".join(f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in parts.items() if keys)
    return KeyMismatchError(
        f"{path} does not fit {row.name}: {report}{_nearest(missing, [*unexpected, *others])}; give a checkpoint of "
        "that network, say with --key-map what its tensors are called, or build it with --model MODULE:FACTORY",
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mis_shaped=tuple(shapes),
    )


def _nearest(missing: Sequence[str], others: Sequence[str]) -> str:
    pairs = []
    for name in missing[:_SHOWN]:
        close = difflib.get_close_matches(name, others, n=1, cutoff=0.4)
        pairs += [f"{close[0]} for {name}"] if close else []
    return f"; the nearest in the file: {', '.join(pairs)}" if pairs else ""


def _missing_head(row: Architecture, translation: Translation, found: Shapes) -> list[str]:
    heads = _heads(row, translation, found)
    if not heads:
        return list(_head_names(row))
    return [] if any(_bias_of(weight) in found for weight in heads) else [_head_names(row)[1]]


def _choose_row(
    rows: Sequence[Architecture],
    translation: Translation,
    asked: Architecture | None,
    named: str | None,
    path: object,
) -> tuple[Architecture, tuple[str, ...]]:
    """The row among those of the same names and shapes; several differ only in where the stride is."""
    names = " or ".join(row.name for row in rows)
    if asked is not None:
        if asked in rows:
            return asked, ()
        raise CheckpointError(
            f"{path} holds {names}, but {asked.name} was asked for; leave the architecture out, or "
            f"give a checkpoint of {asked.name}"
        )
    if named is not None:
        known = _known(named)
        for row in rows:
            if known == row.name:
                return row, ()
        if known in ZOO or _is_resnet(named):
            raise CheckpointError(
                f"{path} says that it is {named}, but its tensors have the names and shapes of {names}, which may "
                f"compute something else; if it is that network all the same, say --arch {rows[0].name}"
            )
    first = next((row for row in rows if row.stride_in_1x1 == translation.scheme.stride_in_1x1), rows[0])
    if len(rows) == 1:
        return first, ()
    other = next(row for row in rows if row is not first)
    where = "first 1×1" if first.stride_in_1x1 else "3×3"
    whose = "Caffe, Keras and MSRA" if first.stride_in_1x1 else "torchvision and timm (v1.5)"
    return first, (
        f"nothing in the file tells {first.name} from {other.name}: the stride is assumed to be in the {where} "
        f"convolution of a block, as {whose} have it; "
        f"--arch {other.name} takes the other",
    )


def _known(named: str) -> str:
    """The zoo's name of an architecture that somebody's file names."""
    plain = re.sub(r"^(?:.*[/:])", "", named.strip()).partition(".")[0].lower().replace("-", "_")
    plain = re.sub(r"^(?:tv|gluon|ssl|swsl|ig|legacy)_", "", plain)
    joined = plain.replace("_", "")
    aliases = {name.replace("_", ""): name for name in ZOO}
    aliases |= {"resnet50v1b": "resnet50", "resnet101v1b": "resnet101", "resnet152v1b": "resnet152"}
    aliases |= {"resnet50v15": "resnet50", "resnet101v15": "resnet101", "resnet152v15": "resnet152"}
    aliases |= {f"resnet{n}{c}": f"resnet{n}_v1" for n in (50, 101, 152) for c in ("caffe", "msra", "keras")}
    return aliases.get(joined, plain)


def _is_resnet(named: str) -> bool:
    return (
        re.search(r"res\w*net|resne|vgg|densenet|efficientnet|mobilenet|regnet|convnext|vit", named, re.I)
        is not None
    )


def _heads(row: Architecture, translation: Translation, found: Shapes) -> list[str]:
    """Names of tensors that could be the classifier's weight."""
    candidates = []
    for key in translation.others:
        shape, leaf = found[key], re.split(r"[./]", key)[-1]
        flat = len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
        if leaf in _WEIGHTS and flat and shape[0 if leaf != "weight" else 1] == row.features:
            candidates.append(key)
    return candidates


def _find_head(row: Architecture, translation: Translation, found: Shapes, path: object) -> tuple[str, str]:
    candidates = _heads(row, translation, found)
    weight_name, bias_name = _head_names(row)
    if not candidates:
        kernel = _expected(row)[weight_name][2:]
        expected = ", ".join(["classes", str(row.features), *map(str, kernel)])
        linear = [
            f"{key} is {list(found[key])}, expected [{expected}]"
            for key in translation.others
            if key.endswith("weight") and (len(found[key]) == 2 or found[key][2:] == (kernel or None))
        ]
        raise KeyMismatchError(
            f"{path} does not fit {row.name}: it has no classifier layer of {row.features} features"
            + (f" ({_some(linear)})" if linear else "")
            + "; give a checkpoint with its classifier, or name it with --key-map",
            missing=() if linear else (weight_name, bias_name),
            unexpected=(),
            mis_shaped=tuple(linear),
        )
    parents = {key: _module(key) for key in candidates}
    ranked = sorted(candidates, key=lambda key: _head_rank(parents[key], translation.prefix))
    weight = ranked[0]
    if len(ranked) > 1 and _head_rank(parents[ranked[1]], translation.prefix) == _head_rank(
        parents[weight], translation.prefix
    ):
        raise CheckpointError(
            f"{path} has several layers that could be the classifier, {', '.join(ranked)}; say which with --key-map"
        )
    siblings = _siblings(parents[weight], translation)
    if siblings:
        raise CheckpointError(
            f"{path} has a classifier of more than one layer ({_some([weight, *siblings])}), expected a single Linear; "
            "build the network with --model MODULE:FACTORY"
        )
    bias = _bias_of(weight)
    if bias not in found:
        raise KeyMismatchError(
            f"{path} does not fit {row.name}: 1 missing ({bias_name}, beside {weight}); "
            "give a checkpoint with it, or build the network with --model MODULE:FACTORY",
            missing=(bias_name,),
            unexpected=(),
            mis_shaped=(),
        )
    classes = _classes(weight, found)
    if found[bias] != (classes,):
        fault = f"{bias} is {list(found[bias])}, expected [{classes}], the classes of {weight}"
        raise KeyMismatchError(
            f"{path} does not fit {row.name}: 1 mis-shaped ({fault}); give a checkpoint of one network",
            missing=(),
            unexpected=(),
            mis_shaped=(fault,),
        )
    return weight, bias


def _bias_of(weight: str) -> str:
    module = _module(weight)
    return module + weight[len(module)] + "bias" + (":0" if weight.endswith(":0") else "")


def _module(key: str) -> str:
    return re.split(r"[./][^./]*$", key)[0]


def _head_rank(module: str, prefix: str) -> tuple[int, bool]:
    parts = re.split(r"[./]", module.removeprefix(prefix))
    known = next((_HEADS.index(part) for part in parts if part in _HEADS), len(_HEADS))
    return known, not module.startswith(prefix)


def _siblings(module: str, translation: Translation) -> list[str]:
    """Parameters of other layers in the classifier's own container."""
    container, _, last = module.rpartition(".")
    name = container.rpartition(".")[2]
    if not container or not (last.isdigit() or name in _HEADS):
        return []
    return [
        key
        for key in translation.others
        if key.startswith(f"{container}.")
        and not key.startswith(f"{module}.")
        and key.rpartition(".")[2] in _PARAMETERS
    ]


def _sort_others(translation: Translation, found: Shapes, used: set[str]) -> tuple[list[str], list[str]]:
    """Tensors that are part of what the network computes and have no place, and those that are not part of it."""
    unexpected: list[str] = []
    left: list[str] = []
    for key in translation.others:
        if key in used or key.rpartition(".")[2] in _BOOKKEEPING:
            continue
        inside = key.startswith(translation.prefix)
        first = key.removeprefix(translation.prefix).split(".")[0]
        part = _PART.fullmatch(first) is not None or len(found[key]) == 4 or key.endswith("running_var")
        (unexpected if inside and part else left).append(key)
    return unexpected, left


def _classes(weight: str, found: Shapes) -> int:
    return found[weight][0] if weight.endswith("weight") else found[weight][1]


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")
