"""Whole networks: a BUnit backbone and its dense counterpart, each in both memory formats, and the
BUnit backbone by PyTorch's grouped convolutions, measured in turn."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace

import torch
import torch.nn.functional as F
from harness import Samples, measure, measure_memory
from peers import Variant
from torch import nn

from bunit_kernels import backends, fuse, metrics
from bunit_kernels.models import create_model, dense_counterpart

#: ``eval``: logits of one batch, norms folded by ``fuse`` in both networks. ``train``: forward,
#: cross-entropy, backward and a step of SGD with momentum.
NETWORK_DIRECTIONS = ("eval", "train")


@dataclass(frozen=True)
class NetworkWork:
    """A backbone and one batch of ``[batch, channels, size, size]``."""

    model: str
    batch: int
    size: int = 32
    channels: int = 3
    classes: int = 10

    @property
    def name(self) -> str:
        return f"{self.model}_n{self.batch}_{self.size}x{self.size}"

    def describe(self) -> str:
        return f"{self.model}, N={self.batch}, {self.size}x{self.size}"

    def small(self) -> NetworkWork:
        """The same network on a batch that takes no time."""
        return replace(self, batch=2, size=min(self.size, 64))

    def make(self, dense: bool) -> nn.Module:
        torch.manual_seed(0)
        name = dense_counterpart(self.model) if dense else self.model
        return create_model(
            name, num_classes=self.classes, in_channels=self.channels, image_size=self.size
        )


NETWORKS = (
    NetworkWork("bunit_mlp", 128, 28, 1),
    NetworkWork("bunit_lenet", 128, 28, 1),
    NetworkWork("bunit_cnn", 128),
    NetworkWork("bunit_vgg16_bn", 128),
    NetworkWork("bunit_resnet20", 128),
    NetworkWork("bunit_resnet20", 1),
    NetworkWork("bunit_resnet110", 1),
    NetworkWork("bunit_resnet18", 128),
    NetworkWork("bunit_resnet18", 1),
    NetworkWork("bunit_mobilenet_v2", 128),
    NetworkWork("bunit_resnet50", 8, 224, classes=1000),
)

#: Of variants: whether it is the dense network, whether channels_last, and the backend. What is
#: ``NOT_FUSED`` keeps its norms in inference.
NOT_FUSED = "bunit not fused"
VARIANTS = {
    "bunit": (False, False, "auto"),
    NOT_FUSED: (False, False, "auto"),
    "bunit channels_last": (False, True, "auto"),
    "bunit by grouped convolutions": (False, False, "torch"),
    "bunit by grouped convolutions channels_last": (False, True, "torch"),
    "dense": (True, False, "auto"),
    "dense channels_last": (True, True, "auto"),
}


@dataclass
class NetworkGroup:
    """What was found out about one network in one direction."""

    work: NetworkWork
    direction: str
    flops: dict[str, int]  # of one image, of the two networks
    parameters: dict[str, int]
    samples: dict[str, Samples] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def fastest(self, kind: str) -> tuple[str, float] | None:
        """Of the variants whose names begin with ``kind`` followed by nothing or a memory format:
        the one of the least median, and its seconds."""
        times = {
            name: s.summary()["median"]
            for name, s in self.samples.items()
            if name.removesuffix(" channels_last") == kind
        }
        return min(times.items(), key=lambda item: item[1], default=None)

    def as_dict(self) -> dict:
        """For a results file. ``time_conversion`` compares each network in its faster format."""
        ours, dense = self.fastest("bunit"), self.fastest("dense")
        conversion = None
        if ours and dense:
            saved = metrics.saving(self.flops["bunit"], self.flops["dense"])
            conversion = metrics.saving(ours[1], dense[1]) / saved
        return {
            "network": asdict(self.work),
            "description": self.work.describe(),
            "direction": self.direction,
            "flops": self.flops,
            "parameters": self.parameters,
            "fresh": {name: s.summary() for name, s in self.samples.items()},
            "fastest": {"bunit": ours and ours[0], "dense": dense and dense[0]},
            "time_conversion": conversion,
        }


def network_variants(quick: bool) -> list[tuple[str, str, str]]:
    """(network, direction, variant), every group's together; with ``quick`` two small ones'."""
    works = [w for w in NETWORKS if not quick or w.model in ("bunit_mlp", "bunit_resnet20")]
    return [
        (work.name, direction, variant)
        for work in works
        for direction in NETWORK_DIRECTIONS
        for variant in VARIANTS
        if direction == "eval" or variant != NOT_FUSED
    ]


def run_network_group(
    work: NetworkWork, direction: str, names: list[str], budget: float, min_rounds: int,
    device: str = "cpu",
) -> NetworkGroup:  # fmt: skip
    """Builds and times the variants ``names``."""
    item = (work.channels, work.size, work.size)
    models = {"bunit": work.make(dense=False), "dense": work.make(dense=True)}
    group = NetworkGroup(
        work,
        direction,
        {name: metrics.count_flops(model, item) for name, model in models.items()},
        {name: metrics.count_parameters(model) for name, model in models.items()},
    )
    made = {
        name: _variant(work, direction, *VARIANTS[name], device, fused=name != NOT_FUSED)
        for name in names
    }
    group.samples = measure(made, budget, min_rounds, device)
    measure_memory(group.samples, made, device)
    return group


def _variant(
    work: NetworkWork, direction: str, dense: bool, last: bool, backend: str, device: str,
    fused: bool,
) -> Variant:  # fmt: skip
    memory_format = torch.channels_last if last else torch.contiguous_format
    model = work.make(dense).to(device, memory_format=memory_format)
    x = torch.randn(work.batch, work.channels, work.size, work.size, device=device)
    x = x.to(memory_format=memory_format)

    def mode() -> AbstractContextManager:
        stack = ExitStack()
        stack.enter_context(backends.backend(backend))
        if direction == "eval":
            stack.enter_context(torch.inference_mode())
        return stack

    if direction == "eval":
        network = fuse(model.eval()) if fused else model.eval()
        return Variant(lambda: (network(x),), mode, list)
    labels = torch.arange(work.batch, device=device) % work.classes
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    return Variant(step, mode, list)


def network_table(group: dict) -> list[str]:
    """A group of a results file as lines of text: one variant a line, the fastest first."""
    fresh = group["fresh"]
    ours = group["fastest"]["bunit"]
    saved = metrics.saving(group["flops"]["bunit"], group["flops"]["dense"])
    line = f"{group['description']}: {group['direction']}   ({saved:.1%} of FLOPs saved"
    if group["time_conversion"] is not None:
        line += f", time conversion {group['time_conversion']:.2f}"
    lines = [line + ")", f"  {'':46}{'ms':>10}{'quartiles':>19}{'x ours':>8}{'peak MB':>9}"]
    for name in sorted(fresh, key=lambda name: fresh[name]["median"]):
        s = fresh[name]
        quartiles = f"{s['q1'] * 1e3:.4g} - {s['q3'] * 1e3:.4g}"
        ratio = f"{s['median'] / fresh[ours]['median']:.2f}" if ours else ""
        peak = "" if s["peak_bytes"] is None else f"{s['peak_bytes'] / 1e6:.0f}"
        lines.append(f"  {name:46}{s['median'] * 1e3:>10.4g}{quartiles:>19}{ratio:>8}{peak:>9}")
    return lines
