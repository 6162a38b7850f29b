"""Candidates that are pretrained: which recipe ranks them, what it falls back to, and what the notes say."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_zico import Candidate, Leaderboard, Prior, ZeroShotSelector, score
from lightning_zico.candidates import iterate_candidates
from lightning_zico.errors import InvalidArgumentError, UnknownNameError
from lightning_zico.proxies import RidgeProbe
from lightning_zico.selection.leaderboards import held_out_difference

NUM_CLASSES, WIDTH = 3, 8


def batches(num: int = 4, shift: float = 3.0) -> list[tuple[Tensor, Tensor]]:
    """Make batches of 16 samples whose first three numbers tell the class, loudly."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(num):
        labels = torch.arange(16) % NUM_CLASSES
        inputs = torch.randn(16, WIDTH, generator=generator)
        inputs[torch.arange(16), labels] += shift
        made.append((inputs, labels))
    return made


def network(noise: float, width: int) -> nn.Module:
    """Build a network whose features are the inputs, drowned in the noise of fixed random numbers."""
    body = nn.Linear(WIDTH, width)
    with torch.no_grad():
        body.weight.normal_(0, noise, generator=torch.Generator().manual_seed(1))
        body.weight[:WIDTH] += torch.eye(WIDTH)[:, :WIDTH]
    return nn.Sequential(body, nn.ReLU(), nn.Linear(width, NUM_CLASSES))


def build(noise: float, width: int = 16) -> Callable[[], nn.Module]:
    return partial(network, noise, width)


NOISES = {"clear": 0.0, "dim": 0.7, "dark": 5.0}
PUBLISHED = {"clear": 70.0, "dim": 75.0, "dark": 60.0}


def candidates(pretrained: bool = True) -> list[Candidate]:
    return [Candidate(name, build(noise), pretrained=pretrained) for name, noise in NOISES.items()]


def rank(offered: object, **settings: object) -> Leaderboard:
    settings = {"loss_fn": nn.CrossEntropyLoss(), "enable_progress_bar": False, **settings}
    data = settings.pop("data", batches())
    return ZeroShotSelector(**settings).rank(offered, data)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [list, tuple, lambda offered: {c.name: c for c in offered}])
def test_the_default_of_pretrained_candidates_is_transfer(form: Callable[[list[Candidate]], object]) -> None:
    leaderboard = rank(form(candidates()), prior=PUBLISHED)
    assert leaderboard.provenance["rank_by"] == "transfer"
    same = rank(candidates(), proxies="transfer", prior=PUBLISHED)
    assert [row["score"] for row in leaderboard] == [row["score"] for row in same]
    assert {row["name"]: row["score"] for row in leaderboard} == PUBLISHED


def test_default_means_the_same_within_a_list_and_as_rank_by() -> None:
    leaderboard = rank(candidates(), proxies=["params", "default"], rank_by="default", prior=PUBLISHED)
    assert leaderboard.provenance["rank_by"] == "transfer"
    assert leaderboard.provenance["asked"] == ["transfer", "params", "prior"]


def test_candidates_that_do_not_say_so_are_ranked_as_before() -> None:
    leaderboard = rank(candidates(pretrained=False), prior=PUBLISHED)
    assert leaderboard.provenance["rank_by"] == "balanced+synflow"
    assert leaderboard.provenance["num_pretrained"] == 0
    assert not any("pretrained" in note for note in leaderboard.notes)


@pytest.mark.parametrize("proxies", ["ridge_probe", "transfer", "linear_probe"])
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_probe_says_so_if_no_candidate_is_said_to_be_pretrained(proxies: str, pretrained: bool) -> None:
    leaderboard = rank(candidates(pretrained=pretrained), proxies=proxies)
    said = f"`{proxies}` measures what candidates have learned; for untrained ones, its values are random."
    assert any(note.startswith(said) for note in leaderboard.notes) != pretrained


def test_the_name_of_the_prior_is_no_proxy_and_the_error_says_what_it_is() -> None:
    with pytest.raises(UnknownNameError, match=r"'prior' is a column of known numbers.*`rank_by=\"prior\"`"):
        rank(candidates(), proxies="prior", prior=PUBLISHED)


def test_a_mixed_list_is_ranked_as_before_and_a_note_says_so() -> None:
    mixed = [*candidates(), Candidate("fresh", build(1.0))]
    leaderboard = rank(mixed)
    assert leaderboard.provenance["rank_by"] == "balanced+synflow"
    assert any(note.startswith("3 candidates are pretrained, the other 1 not.") for note in leaderboard.notes)


def test_candidates_of_an_iterator_are_not_asked_in_advance_and_a_note_says_so() -> None:
    leaderboard = rank(iter(candidates()))
    assert leaderboard.provenance["rank_by"] == "balanced+synflow"
    assert any(note.startswith("All candidates are pretrained, and `balanced+synflow`") for note in leaderboard.notes)


@pytest.mark.parametrize("prior", [None, {"clear": 70.0, "dim": 75.0}])
def test_without_all_published_accuracies_the_probe_ranks_all_and_a_note_says_so(
    prior: dict[str, float] | None,
) -> None:
    sized = [
        Candidate(name, build(noise, 16 + 8 * idx), pretrained=True) for idx, (name, noise) in enumerate(NOISES.items())
    ]
    leaderboard = rank(sized, prior=prior)
    used = leaderboard.provenance["recipes"]["transfer"]
    assert used["used"] == "linear_probe"
    assert used["members"] == ["ridge_probe"]
    assert [row["name"] for row in leaderboard] == list(NOISES)
    assert [member["member"] for member in used["lacking"]] == ["prior"]
    assert any(note.startswith("transfer fell back to linear_probe") for note in leaderboard.notes)


def test_without_labels_of_classes_what_is_published_ranks() -> None:
    """Labels for each number of a sample are not what transfer scores are defined for."""
    data = [(inputs, inputs.clone()) for inputs, _ in batches()]
    autoencoders = [
        Candidate(name, lambda: nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, WIDTH)), pretrained=True)
        for name in PUBLISHED
    ]
    selector = ZeroShotSelector(loss_fn=nn.MSELoss(), prior=PUBLISHED, enable_progress_bar=False)
    leaderboard = selector.rank(autoencoders, data)
    assert leaderboard.provenance["recipes"]["transfer"]["used"] == "transfer"
    assert [row["name"] for row in leaderboard] == sorted(PUBLISHED, key=PUBLISHED.__getitem__, reverse=True)


def test_a_score_of_one_pretrained_candidate_has_the_same_members() -> None:
    candidate = candidates()[0]
    card = score(candidate, batches(), proxies="default", loss_fn=nn.CrossEntropyLoss())
    assert card["ridge_probe"].value == rank([candidate])[0]["ridge_probe"]
    assert "synflow" not in card.scores


def test_equal_repeats_of_the_probe_show_no_certainty_and_known_numbers_are_certain() -> None:
    """Every repeat of the probe is right in all cases."""
    built = {name: network(0.0, 16) for name in ("a", "b")}
    offered = [Candidate(name, partial(lambda model: model, model), pretrained=True) for name, model in built.items()]
    by_probe = rank(offered, repeats=2, data=batches(8, shift=100.0))
    assert [row["ridge_probe"] for row in by_probe] == [100.0, 100.0]
    assert by_probe.provenance["equal_repeats"] == ["a", "b"]
    assert all(row["std_error"] is None for row in by_probe)
    known = rank(offered, repeats=2, prior=Prior({"a": 1.0, "b": 2.0}, name="acc"), rank_by="acc", data=batches(8))
    assert known.provenance["equal_repeats"] == []
    assert all(row["std_error"] == 0.0 for row in known)


@pytest.mark.parametrize("known", [Prior({"a": 1.0}, name="acc"), {"a": 1.0}])
def test_a_column_that_a_zoo_may_bring_along_can_be_ranked_by(known: object) -> None:
    assert ZeroShotSelector(rank_by="input_size", prior=known).rank_by == "input_size"  # type: ignore[arg-type]


def test_being_pretrained_is_kept_and_checked() -> None:
    named = list(iterate_candidates({"mine": Candidate("theirs", build(0.0), pretrained=True)}))
    assert [(c.name, c.pretrained) for c in named] == [("mine", True)]
    with pytest.raises(InvalidArgumentError, match="expected True or False"):
        Candidate("wrong", build(0.0), pretrained="yes")  # type: ignore[arg-type]


def test_a_note_compares_the_ranking_with_what_is_published() -> None:
    leaderboard = rank(candidates(), proxies="logme", prior=PUBLISHED)
    tau = leaderboard.provenance["kendall_with_prior"]
    values = {row["name"]: row["logme"] for row in leaderboard}
    agree = [
        np.sign(values[a] - values[b]) * np.sign(PUBLISHED[a] - PUBLISHED[b]) for a in NOISES for b in NOISES if a < b
    ]
    assert tau == pytest.approx(np.mean(agree))
    assert f"Kendall's tau of this ranking with the known numbers (prior): {tau:.2f}." in leaderboard.notes
    assert not any("nearly the published order" in note for note in leaderboard.notes)
    same = Prior({row["name"]: float(-idx) for idx, row in enumerate(leaderboard)})
    copied = rank(candidates(), proxies="logme", prior=same)
    assert any("This ranking is nearly the published order (1.00)" in note for note in copied.notes)
    untrained = rank(candidates(pretrained=False), proxies="logme", prior=same)
    assert not any("published order" in note for note in untrained.notes)


def test_a_note_says_that_known_numbers_do_not_depend_on_the_data_and_how_the_probe_agrees() -> None:
    leaderboard = rank(candidates(), prior=PUBLISHED)
    values = {name: rank(candidates(), proxies="ridge_probe")[name]["ridge_probe"] for name in NOISES}
    agree = [
        np.sign(values[a] - values[b]) * np.sign(PUBLISHED[a] - PUBLISHED[b]) for a in NOISES for b in NOISES if a < b
    ]
    assert [note for note in leaderboard.notes if "does not change" in note] == [
        "This ranking is the order of the known numbers (prior), which your data does not change. Kendall's tau of "
        f"ridge_probe, which looks at your data, with it: {np.mean(agree):.2f}."
    ]
    assert not any("nearly the published order" in note for note in leaderboard.notes)


def test_the_first_two_are_compared_sample_by_sample() -> None:
    selector = ZeroShotSelector(
        proxies=["transfer", "ridge_probe"], prior=PUBLISHED, loss_fn=nn.CrossEntropyLoss(), enable_progress_bar=False
    )
    leaderboard = selector.rank(candidates(), batches())
    first, second = (selector.cards_[row["name"]]["ridge_probe"] for row in leaderboard.rows[:2])
    told = leaderboard.provenance["held_out_difference"]
    assert told["points"] == pytest.approx(first.value - second.value)
    pairs = [(int(a), int(b)) for a, b in zip(first.details["is_right"], second.details["is_right"], strict=True)]
    assert told["num_samples"] == len(pairs) == 64
    assert first.value == pytest.approx(100 * np.mean([a for a, _ in pairs]))
    won, lost = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    mean = (won - lost) / 64
    variance = (won * (1 - mean) ** 2 + lost * (1 + mean) ** 2 + (64 - won - lost) * mean**2) / 63
    assert told["std_error"] == pytest.approx(100 * (variance / 64) ** 0.5)
    (note,) = [note for note in leaderboard.notes if note.startswith("By ridge_probe, ")]
    assert note.startswith(
        f"By ridge_probe, {told['first']} is {abs(told['points']):.1f} ± {told['std_error']:.1f} accuracy"
    )
    assert ("cannot tell the two apart" in note) == (abs(told["points"]) <= 2 * told["std_error"])
    assert Leaderboard.from_json(leaderboard.to_json()).notes == leaderboard.notes


def test_without_the_probe_or_with_other_samples_nothing_is_said_of_points() -> None:
    assert rank(candidates(), proxies="params", prior=PUBLISHED).provenance["held_out_difference"] is None
    model = network(0.5, 16)
    loss_fn = nn.CrossEntropyLoss()
    one = score(model, batches(), proxies=[RidgeProbe()], loss_fn=loss_fn)
    other = score(model, batches()[:2], proxies=[RidgeProbe()], loss_fn=loss_fn)
    reversed_ = score(model, [(x.flip(0), y.flip(0)) for x, y in batches()], proxies=[RidgeProbe()], loss_fn=loss_fn)
    assert held_out_difference(one, one) is not None
    assert held_out_difference(one, other) is None
    assert held_out_difference(one, reversed_) is None


def test_repeats_have_standard_errors_of_their_own_instead() -> None:
    leaderboard = ZeroShotSelector(
        proxies=["transfer", "ridge_probe"],
        prior=PUBLISHED,
        repeats=2,
        loss_fn=nn.CrossEntropyLoss(),
        enable_progress_bar=False,
    ).rank(candidates(), batches(8))
    assert "held_out_difference" not in leaderboard.provenance
    assert leaderboard.provenance["rank_by"] == "transfer"
