"""Published figures of proxies: results in papers for the same benchmark and target, under their own protocols."""

from collections.abc import Mapping
from dataclasses import dataclass

SOURCES = {
    "Z": "Li et al., ZiCo, arXiv:2301.11300, tables 3 and 5, figure 3: all archs, batches of 128, test accuracy.",
    "A": "Lee & Ham, AZ-NAS, arXiv:2403.19232, from a note on it: all archs, random images.",
    "V": "VKDNW, arXiv:2502.04975, table 1: evidently other archs, since `macs` does better: do not mix.",
    "L": "L-SWAG, CVPR 2025, tables 1 and 3 (1,000 archs); `az` is its own run, of which another has .42 on 101.",
    "R": "'Revolutionizing Training-Free NAS', table 2: its own run of SWAP.",
    "B": "ZiCo-BC, arXiv:2309.14666, table 2.",
    "M": "MeCo, NeurIPS 2023, table 1, from a note on it.",
}

# Benchmark, target, source: then the name, Kendall's tau and Spearman's rho of each; a dash if the paper prints none.
FIGURES = """
nas-bench-201 test_cifar10 Z: grad_norm .46 .63, snip .46 .63, grasp .37 .54, fisher .40 .55, synflow .54 .73
nas-bench-201 test_cifar10 Z: knas .14 .20, naswot .58 .77, ntk_cond .33 .44, gradsign .58 .77, zen .29 .38
nas-bench-201 test_cifar10 Z: macs .54 .73, params .57 .75, zico .61 .80
nas-bench-201 test_cifar10 A: az .741 .913
nas-bench-201 test_cifar10 V: jacob_cov .616 .800, num_layers .626 .767, vkdnw .618 .815
nas-bench-201 test_cifar10 L: lswag - .79
nas-bench-201 test_cifar10 R: swap .634 .810
nas-bench-201 test_cifar10 M: meco - .894
nas-bench-201 test_cifar100 Z: grad_norm .47 .63, snip .46 .63, grasp .36 .51, fisher .41 .55, synflow .57 .76
nas-bench-201 test_cifar100 Z: knas .24 .35, naswot .62 .80, ntk_cond .33 .43, gradsign .59 .79, zen .28 .36
nas-bench-201 test_cifar100 Z: macs .51 .71, params .55 .73, zico .61 .81
nas-bench-201 test_cifar100 A: az .723 .900
nas-bench-201 test_cifar100 V: jacob_cov .639 .820, num_layers .646 .787, vkdnw .634 .829
nas-bench-201 test_cifar100 L: lswag - .83
nas-bench-201 test_cifar100 R: swap .649 .820
nas-bench-201 test_cifar100 M: meco - .883
nas-bench-201 test_imagenet16_120 Z: grad_norm .43 .58, snip .43 .58, grasp .40 .56, fisher .37 .50, synflow .56 .75
nas-bench-201 test_imagenet16_120 Z: knas .30 .42, naswot .60 .78, ntk_cond .46 .63, gradsign .59 .78, zen .29 .40
nas-bench-201 test_imagenet16_120 Z: macs .49 .67, params .52 .69, zico .60 .79
nas-bench-101 val_accuracy Z: grad_norm -.17 -.25, snip -.12 -.17, grasp .20 .29, fisher -.20 -.28, synflow .23 .35
nas-bench-101 val_accuracy Z: zen .46 .63, macs .31 .44, params .31 .43, zico .46 .63
nas-bench-101 val_accuracy L: az - .54
transnas-micro autoencoder Z: grad_norm .24 .32, snip .20 .27, grasp .09 .14, fisher .42 .59, synflow .00 .00
transnas-micro autoencoder Z: naswot .01 .02, zen .09 .14, gradsign .01 .02, params .01 .01, macs .02 .02, zico .24 .35
transnas-micro autoencoder L: az - .31, lswag - .31
transnas-micro class_scene Z: grad_norm .47 .65, snip .52 .71, grasp .19 .28, fisher .49 .67, synflow .53 .72
transnas-micro class_scene Z: naswot .43 .60, zen .52 .72, gradsign .32 .46, params .46 .64, macs .47 .65, zico .51 .71
transnas-micro class_scene L: az - .79
transnas-micro jigsaw Z: grad_norm .23 .35, snip .27 .41, grasp .07 .11, fisher .19 .30, synflow .32 .47
transnas-micro jigsaw Z: naswot .29 .42, zen .35 .50, gradsign .38 .53, params .29 .44, macs .30 .45, zico .36 .52
transnas-micro jigsaw L: az - .41, lswag - .58
transnas-micro normal Z: grad_norm .24 .36, snip .32 .49, grasp .01 .01, fisher .10 .14, synflow .00 .00
transnas-micro normal Z: naswot .41 .57, zen .52 .71, gradsign .29 .40, params .45 .63, macs .46 .64, zico .50 .68
transnas-micro normal L: az - .60, lswag - .75
transnas-micro room_layout L: az - .53
transnas-micro class_object L: az - .58
transnas-micro segmentsemantic L: az - .72
nats-bench-size test_cifar10 Z: grad_norm .35 .51, snip .42 .59, grasp -.09 -.13, fisher .30 .44, synflow .61 .81
nats-bench-size test_cifar10 Z: knas .25 .37, naswot .45 .63, ntk_cond .17 .26, gradsign .21 .30, zen .50 .69
nats-bench-size test_cifar10 Z: macs .19 .28, params .53 .72, zico .54 .73
nats-bench-size test_cifar10 B: zico_bc .78 .94
nats-bench-size test_cifar10 M: meco - -.79
nats-bench-size test_cifar100 Z: grad_norm .34 .49, snip .46 .62, grasp .01 .01, fisher .41 .55, synflow .60 .80
nats-bench-size test_cifar100 Z: knas .12 .18, naswot .43 .59, ntk_cond .04 .06, gradsign .16 .27, zen .52 .71
nats-bench-size test_cifar100 Z: macs .21 .30, params .54 .73, zico .55 .75
nats-bench-size test_cifar100 B: zico_bc .60 .79
nats-bench-size test_cifar100 M: meco - -.87
nats-bench-size test_imagenet16_120 Z: grad_norm .49 .67, snip .57 .76, grasp .29 .42, fisher .33 .47, synflow .39 .57
nats-bench-size test_imagenet16_120 Z: knas .32 .46, naswot .42 .59, ntk_cond .20 .30, gradsign .04 .05, zen .69 .87
nats-bench-size test_imagenet16_120 Z: macs .38 .53, params .65 .84, zico .70 .88
nats-bench-size test_imagenet16_120 B: zico_bc .79 .94
nats-bench-size test_imagenet16_120 M: meco - -.86
"""


@dataclass(frozen=True)
class Published:
    """Kendall's tau and Spearman's rho as printed in a source, None if it prints none; ``source`` is a key."""

    tau: float | None
    rho: float | None
    source: str

    def __str__(self) -> str:
        tau, rho = ("-" if value is None else f"{value:.3f}" for value in (self.tau, self.rho))
        return f"{tau} / {rho} {self.source}"


def published(benchmark: str, target: str) -> Mapping[str, Published]:
    """Look up the published figures of each proxy and recipe for a target of a benchmark.

    Example:
        >>> str(published("nas-bench-201", "test_cifar10")["zico"])
        '0.610 / 0.800 Z'
    """
    figures = {}
    for line in FIGURES.strip().splitlines():
        place, _, entries = line.partition(": ")
        *where, source = place.split()
        for entry in entries.split(", ") if where == [benchmark, target] else ():
            name, *printed = entry.split()
            tau, rho = (None if text == "-" else float(text) for text in printed)
            figures[name] = Published(tau, rho, source)
    return figures
