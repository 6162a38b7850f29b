"""A sampler of Optuna that scores several proposals untrained, and lets each trial train the best one."""

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_zico._imports import import_optional
from lightning_zico.bridge import check_data, check_readable_again
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import InvalidArgumentError, check_count
from lightning_zico.search.trials import quiet_optuna
from lightning_zico.selection import ZeroShotSelector

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial, FrozenTrial, TrialState
else:
    optuna = import_optional("optuna", "`ScreeningSampler` needs Optuna", "search")

# Key of the attribute of a trial that holds the leaderboard of its proposals.
SCREENING = "screening"


class ScreeningSampler(optuna.samplers.BaseSampler):
    """Let each trial of an Optuna study train the best of several proposals, by a score without training.

    For each trial, ``suggest`` is called with proposals of ``base_sampler``, and the modules that it returns are ranked
    untrained. The trial then gets the parameters of the first one. The objective stays as it is: its own call of
    ``suggest`` receives these parameters, so that storage, pruners, importances and the dashboard see them as usual.
    Parameters that only the objective suggests, such as a learning rate, come from ``base_sampler``.

    The leaderboard of a trial's proposals is its user attribute ``"screening"``, for `Leaderboard.from_dict`. If all
    proposals of a trial are equal, which includes enqueued trials, nothing is scored, and there is no such attribute.

    Args:
        base_sampler: Sampler of Optuna that makes the proposals. Its seed determines them, and the scores have a seed
            of their own, so that a study can be repeated.
        suggest: ``(trial) -> module``. Chooses parameters with ``trial.suggest_*``, also depending on each other, and
            returns the untrained module. It is called more than once for each proposal.
        data: Data to score on, as for `ZeroShotSelector.rank`; it must not be an iterator.
        num_candidates: Number of proposals for each trial, at least 2. Equal ones are scored once.
        settings: Arguments of `ZeroShotSelector`, such as ``proxies="zico"`` or ``loss_fn=nn.CrossEntropyLoss()``. No
            progress bar is shown by default.

    Raises:
        InvalidArgumentError: If an argument is of the wrong type or out of range, or data can be read only once. A
            study with ``n_jobs`` other than 1 raises it as well.
        ModuleNotFoundError: If Optuna is not installed.

    Example:
        >>> import torch
        >>> from optuna.samplers import RandomSampler
        >>> def suggest(trial):
        ...     width = trial.suggest_int("width", 4, 64)
        ...     return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))
        >>> batches = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(2)]
        >>> settings = {"proxies": "params", "loss_fn": nn.CrossEntropyLoss()}
        >>> study = optuna.create_study(sampler=ScreeningSampler(RandomSampler(0), suggest, batches, **settings))
        >>> trial = study.ask()
        >>> network = suggest(trial)  # train it, and pass the result to `study.tell`
        >>> [row["name"] for row in trial.user_attrs["screening"]["rows"]][0] == f"width={trial.params['width']}"
        True
    """

    def __init__(
        self,
        base_sampler: "optuna.samplers.BaseSampler",
        suggest: "Callable[[BaseTrial], nn.Module]",
        data: Any,
        num_candidates: int = 8,
        **settings: Any,
    ) -> None:
        if not isinstance(base_sampler, optuna.samplers.BaseSampler):
            raise InvalidArgumentError(f"Invalid base_sampler={base_sampler!r}: expected a sampler of Optuna.")
        if not callable(suggest):
            raise InvalidArgumentError(f"Invalid suggest={suggest!r}: expected a function of a trial.")
        self._num_candidates = check_count("num_candidates", num_candidates, least=2)
        self._settings = {"enable_progress_bar": False, **settings}
        check_data(data, pairs=ZeroShotSelector(**self._settings).loss_fn is not None)
        check_readable_again(data, "data", "and the first trial would use it up", "Pass a data module or a DataLoader")
        self._base, self._suggest, self._data = base_sampler, suggest, data
        self._chosen: dict[int, dict[str, Any]] = {}  # parameters of trials that have not received them yet

    def infer_relative_search_space(self, study: "optuna.Study", trial: "FrozenTrial") -> "dict[str, BaseDistribution]":
        """Choose the parameters of a trial, and return their distributions."""
        proposals = self._propose(study, trial)
        best = next(iter(proposals)) if len(proposals) == 1 else self._screen(study, trial, proposals)
        chosen = proposals[best]
        # What the base sampler draws jointly includes parameters that only the objective suggests.
        self._chosen[trial.number] = {**chosen.relative_params, **chosen.params}
        return {**(chosen.relative_search_space or {}), **chosen.distributions}

    def sample_relative(
        self, study: "optuna.Study", trial: "FrozenTrial", search_space: "dict[str, BaseDistribution]"
    ) -> dict[str, Any]:
        """Return the parameters that were chosen for a trial."""
        chosen = self._chosen.pop(trial.number)
        return {name: value for name, value in chosen.items() if name in search_space}

    def sample_independent(
        self, study: "optuna.Study", trial: "FrozenTrial", param_name: str, param_distribution: "BaseDistribution"
    ) -> Any:
        """Let the base sampler draw a parameter that only the objective suggests."""
        return self._base.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: "optuna.Study", trial: "FrozenTrial") -> None:
        """Let the base sampler prepare for a trial."""
        self._base.before_trial(study, trial)

    def after_trial(
        self, study: "optuna.Study", trial: "FrozenTrial", state: "TrialState", values: Sequence[float] | None
    ) -> None:
        """Let the base sampler see the end of a trial."""
        self._chosen.pop(trial.number, None)
        self._base.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Refuse threads, since scoring sets and restores the state of the whole process.

        Raises:
            InvalidArgumentError: Always; Optuna calls this method only for ``n_jobs`` other than 1.
        """
        raise InvalidArgumentError(
            "Invalid n_jobs: `ScreeningSampler` needs `n_jobs=1`. To run trials in parallel, start several processes "
            "with the same storage."
        )

    def _propose(self, study: "optuna.Study", trial: "FrozenTrial") -> "dict[str, optuna.Trial]":
        """Draw the proposals for a trial by their parameters in words; they are trials of a study that is not kept."""
        trial = study._storage.get_trial(trial._trial_id)  # with what `before_trial` stored
        with quiet_optuna():
            drafts = optuna.create_study(sampler=_Drafting(self._base, study, trial))
        proposals: dict[str, optuna.Trial] = {}
        with preserved_rng():
            for _ in range(self._num_candidates):
                # The attributes include parameters that an enqueued trial fixes.
                waiting = optuna.trial.create_trial(
                    state=optuna.trial.TrialState.WAITING, system_attrs=dict(trial.system_attrs)
                )
                drafts.add_trial(waiting)
                draft = drafts.ask()
                with suppress(Exception):  # it fails again when it is scored, and becomes a row with the reason
                    self._suggest(draft)
                proposals.setdefault(", ".join(f"{name}={value!r}" for name, value in draft.params.items()), draft)
        return proposals

    def _screen(self, study: "optuna.Study", trial: "FrozenTrial", proposals: "dict[str, optuna.Trial]") -> str:
        """Rank the proposals, store the leaderboard with the trial, and return the name of the best."""
        candidates = {
            name: partial(self._suggest, optuna.trial.FixedTrial(draft.params, trial.number))
            for name, draft in proposals.items()
        }
        leaderboard = ZeroShotSelector(**self._settings).rank(candidates, self._data)
        content = json.loads(leaderboard.to_json())
        study._storage.set_trial_user_attr(trial._trial_id, SCREENING, content)
        trial.set_user_attr(SCREENING, content)  # for the objective, which has this copy of the trial
        if leaderboard.best is None:
            first = next(iter(proposals))
            warnings.warn(
                f"Trial {trial.number} gets the first proposal ({first}), since there is no score to choose by. "
                f"{leaderboard.describe_failures()}",
                stacklevel=2,
            )
            return first
        return leaderboard.best


class _Drafting(optuna.samplers.BaseSampler):
    """Draws for any trial what another sampler would draw for one trial of its own study."""

    def __init__(self, base: "optuna.samplers.BaseSampler", study: "optuna.Study", trial: "FrozenTrial") -> None:
        self._base, self._study, self._trial = base, study, trial

    def infer_relative_search_space(self, study: "optuna.Study", trial: "FrozenTrial") -> "dict[str, BaseDistribution]":
        return self._base.infer_relative_search_space(self._study, self._trial)

    def sample_relative(
        self, study: "optuna.Study", trial: "FrozenTrial", search_space: "dict[str, BaseDistribution]"
    ) -> dict[str, Any]:
        return self._base.sample_relative(self._study, self._trial, search_space)

    def sample_independent(
        self, study: "optuna.Study", trial: "FrozenTrial", param_name: str, param_distribution: "BaseDistribution"
    ) -> Any:
        drafted = copy.copy(self._trial)
        drafted.params, drafted.distributions = trial.params, trial.distributions
        return self._base.sample_independent(self._study, drafted, param_name, param_distribution)
