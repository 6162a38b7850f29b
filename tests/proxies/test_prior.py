"""A prior is what is known by name: a column that can be ranked by, be a recipe's member, and is in no cache."""

from pathlib import Path
from typing import Any

import pytest

from lightning_zico import Prior, ZeroShotSelector
from lightning_zico.errors import UnknownNameError
from lightning_zico.ranking import RECIPES, Evidence, Recipe
from tests.modules import Classifier, make_batches


class Wide(Classifier):
    def __init__(self) -> None:
        super().__init__(width=16)


CANDIDATES = {"small": Classifier, "wide": Wide}


def test_it_is_a_column_beside_the_others_and_ranks_if_asked_to() -> None:
    prior = {"small": 80.0, "wide": 70.0}
    leaderboard = ZeroShotSelector(proxies="params", prior=prior).rank(CANDIDATES, make_batches())
    assert [(row["name"], row["prior"]) for row in leaderboard] == [("wide", 70.0), ("small", 80.0)]
    leaderboard = ZeroShotSelector(proxies="params", prior=prior, rank_by="prior").rank(CANDIDATES, make_batches())
    assert [row["name"] for row in leaderboard] == ["small", "wide"]
    lower = Prior(prior, higher_is_better=False, name="published_error")
    selector = ZeroShotSelector(proxies="params", prior=lower, rank_by="published_error")
    assert selector.rank(CANDIDATES, make_batches()).best == "wide"
    with pytest.raises(UnknownNameError, match="rank_by"):
        ZeroShotSelector(proxies="params", rank_by="prior").rank(CANDIDATES, make_batches())  # a zoo might bring one


def test_a_candidate_that_nothing_is_known_of_says_so() -> None:
    selector = ZeroShotSelector(proxies="params", prior={"small": 80.0})
    assert selector.rank(CANDIDATES, make_batches()).best == "wide"
    assert selector.cards_["wide"]["prior"].error == "not applicable: the prior has no value for 'wide'."


@pytest.mark.usefixtures("_own_registries")
def test_it_can_be_a_member_of_a_recipe() -> None:
    RECIPES.register("hinted", Recipe("hinted", ("params", "prior"), "mean_rank", Evidence(), "of this test"))
    prior = {"a": 3.0, "b": 2.0, "c": 1.0}
    candidates = {"a": Classifier, "b": Wide, "c": Classifier}
    leaderboard = ZeroShotSelector(proxies="hinted", prior=prior).rank(candidates, make_batches())
    assert leaderboard.best in ("a", "b")
    assert leaderboard.rows[-1]["name"] == "c"
    assert leaderboard.provenance["rank_by"] == "hinted"


def test_tags_of_checkpoints_belong_to_their_architecture() -> None:
    values = {"net.a": 1.0, "net.b": 3.0, "net.c": 2.0, "other": 5.0, "other.a": 7.0}
    assert Prior(values).of("net") == 3.0
    assert Prior(values, higher_is_better=False).of("net") == 1.0
    assert Prior(values).of("net.c") == 2.0
    assert Prior(values).of("other") == 5.0
    assert Prior(values).of("ne") is None


def test_candidates_of_several_zoos_are_known_with_and_without_the_name_of_the_zoo() -> None:
    prior = Prior({"resnet18": 1.0, "timm:resnet18": 0.0, "timm:vgg.a": 2.0, "vgg.b": 3.0})
    assert [prior.of(name) for name in ("timm:resnet18", "torchvision:resnet18", "resnet18")] == [0.0, 1.0, 1.0]
    assert [prior.of(name) for name in ("timm:vgg", "torchvision:vgg", "vgg")] == [2.0, 3.0, 3.0]
    assert prior.of("timm:vit") is None


def test_a_candidate_without_a_name_is_not_what_others_are_known_by() -> None:
    prior = Prior({"": 50.0, "a": 1.0})
    assert [prior.of(name) for name in ("", "a", "b", "timm:", "timm:a")] == [50.0, 1.0, None, None, 1.0]
    with pytest.raises(ValueError, match="`prior` of 'resnet18' is nan: expected a finite number"):
        Prior({"resnet18": float("nan")})


def test_a_file_is_joined_by_its_first_column(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("model,img_size,top1\nsmall.a,224,70.5\nsmall.a,288,71.5\nwide,224,60\n", encoding="utf-8")
    prior = Prior.from_csv(path, "top1")
    assert (prior.of("small"), prior.of("wide")) == (71.5, 60.0)
    assert Prior.from_csv(path, "img_size", higher_is_better=False).of("small") == 224
    with pytest.raises(ValueError, match="columns model, img_size, top1, and `column` is not given"):
        ZeroShotSelector(prior=path)
    with pytest.raises(ValueError, match="there is no column 'top5'"):
        Prior.from_csv(path, "top5")
    path.write_text("name,accuracy\nsmall,70.5\nwide,60\n", encoding="utf-8")
    selector = ZeroShotSelector(proxies="params", prior=str(path), rank_by="prior")
    assert selector.rank(CANDIDATES, make_batches()).best == "small"
    for text in ("high", "nan", "-inf", ""):
        path.write_text(f"name,accuracy\nwide,3\n\nsmall,{text}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=f"line 4: `accuracy` of 'small' is '{text}': expected a finite number"):
            Prior.from_csv(path)
    for text in ("name,accuracy\n", ""):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"is empty|`column` is not given"):
            Prior.from_csv(path)


def test_a_cache_which_knows_no_names_does_not_keep_it(tmp_path: Path) -> None:
    """Candidates of equal weights share what is in the cache, and not what is known by name."""
    own: dict[str, Any] = {"proxies": "zico", "cache": tmp_path / "scores.db"}
    prior = {"a": 1.0, "b": 2.0}
    twins = {"a": Classifier, "b": Classifier}
    first = ZeroShotSelector(**own, prior=prior).rank(twins, make_batches())
    assert {row["name"]: row["prior"] for row in first} == prior
    assert first.rows[0]["zico"] == first.rows[1]["zico"]
    other = ZeroShotSelector(**own, prior={"a": 5.0, "b": 4.0}).rank(twins, make_batches())
    assert {row["name"]: row["prior"] for row in other} == {"a": 5.0, "b": 4.0}
