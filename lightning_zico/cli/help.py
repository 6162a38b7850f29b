"""The help of a command: its usage and examples first, then its options in groups."""

import argparse
from collections.abc import Mapping
from typing import Any

from lightning_zico.cli.program import PROG

_USAGES: Mapping[str, str] = {
    "rank": "--data DATA (--zoo ZOO | --candidates PATH) [OPTIONS]",
    "score": "MODEL --data DATA [OPTIONS]",
    "search": "--space SPACE --data DATA [OPTIONS]",
}
_EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "rank": (
        "--data digits --zoo 'timm:resnet*' --budget.params 15e6",
        "--data my_pkg.MyDataModule --candidates my_pkg.my_candidates --finalists 3 --trainer.max_epochs 10",
    ),
    "score": (
        "timm:resnet18 --data digits --layers",
        "my_pkg.Mlp --model.width 64 --data my_pkg.MyDataModule --proxies zico,naswot",
    ),
    "search": (
        "--space nas_bench_201 --data cifar10 --budget.params 1e6 --num_trials 200",
        "--space plainnet --data images/ --budget.macs 450e6 --proxies zico --storage trials.db",
    ),
    "proxies": ("--pattern 'az*'",),
    "report": ("zico-results/leaderboard.json -o page.html",),
}
# Options by group; an option that is in none stays among the last, and so do those of a class, such as `--budget.macs`.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "data and models": (
        *("data", "model", "zoo", "candidates", "space", "num_classes", "in_chans", "input_size", "vocab_size"),
        *("resolution", "pretrained", "exclude"),
    ),
    "scores": (
        *("proxies", "rank_by", "controlled_by", "prior", "prior_column", "prior_lower_is_better", "num_batches"),
        *("batch_size", "num_samples_transfer", "axis", "chunk_size", "num_samples", "seed", "repeats", "race"),
    ),
    "search": ("against", "sampler", "num_trials", "storage", "name"),
    "finals and training": (
        *("trainer", "finalists", "learn", "final_epochs", "final_seeds", "reduction_factor", "least_agreement"),
        *("patience", "time_budget_s", "monitor", "mode", "finals_executor"),
    ),
    "where scores are computed and kept": (
        *("executor", "num_workers", "timeout_s", "memory_bytes", "accelerator", "devices", "precision"),
        *("channels_last", "cache"),
    ),
    "output": ("output", "layers", "enable_progress_bar"),
}


def with_lines(formatter: type[argparse.HelpFormatter]) -> type[argparse.HelpFormatter]:
    """Return a formatter that keeps the lines of a description, such as examples."""
    return type(formatter.__name__, (argparse.RawDescriptionHelpFormatter, formatter), {})


def arrange_help(parser: Any, command: str) -> None:
    """Put usage and examples at the top of a command's help, and its options in groups.

    Args:
        parser: Parser of jsonargparse for the command, with all options.
        command: Name of the command.
    """
    if command in _USAGES:
        parser.usage = f"{PROG} {command} {_USAGES[command]}"
    examples = "\n".join(f"  {PROG} {command} {example}" for example in _EXAMPLES[command])
    parser.description = f"{parser.description}\n\nexamples:\n{examples}"
    positional, others, *classes = parser._action_groups
    moved = []
    for title, names in _GROUPS.items():
        actions = [
            action for name in names for action in others._group_actions if action.dest in (name, f"{name}.help")
        ]
        if actions:
            group = parser.add_argument_group(title)
            group._group_actions.extend(actions)
            moved.append(group)
    in_a_group = [action for group in moved for action in group._group_actions]
    others._group_actions[:] = [action for action in others._group_actions if action not in in_a_group]
    parser._action_groups[:] = [positional, *moved[:2], *classes, *moved[2:], others]
