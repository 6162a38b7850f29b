"""Laws on the shape of the code: short signatures, short functions, short files, no cycles and no exceptions."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lightning_zico"
FILES = sorted(PACKAGE.rglob("*.py"))

MOST_PARAMETERS = 12
MOST_LINES_OF_A_BODY = 60
MOST_LINES_OF_A_FILE = 500


def functions(file: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in named)


def lines_of_body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines after the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def is_space(file: Path) -> bool:
    return file.is_relative_to(PACKAGE / "spaces")


def test_no_written_signature_is_long() -> None:
    found = {name: num_parameters(function) for file in FILES for name, function in functions(file)}
    assert {name: count for name, count in found.items() if count > MOST_PARAMETERS} == {}


def test_no_body_is_long() -> None:
    found = {name: lines_of_body(function) for file in FILES for name, function in functions(file)}
    assert {name: count for name, count in found.items() if count > MOST_LINES_OF_A_BODY} == {}


def test_no_file_is_long() -> None:
    """A space may be long: it follows one published description from beginning to end."""
    found = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines())
        for file in FILES
        if not is_space(file)
    }
    assert {name: count for name, count in found.items() if count > MOST_LINES_OF_A_FILE} == {}


def test_no_modules_import_each_other() -> None:
    graph = grimp.build_graph("lightning_zico", exclude_type_checking_imports=True, cache_dir=None)
    cycles = {
        (module, imported)
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if graph.chain_exists(importer=imported, imported=module)
    }
    assert cycles == set()


@pytest.mark.parametrize(("module", "most"), [("selection.selector", 14), ("search.zero_shot", 13)])
def test_the_top_knows_few_siblings(module: str, most: int) -> None:
    graph = grimp.build_graph("lightning_zico", exclude_type_checking_imports=True, cache_dir=None)
    assert len(graph.find_modules_directly_imported_by(f"lightning_zico.{module}")) <= most


def test_the_contract_has_no_exceptions() -> None:
    contracts = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[[tool.importlinter.contracts]]")[1:]
    assert len(contracts) >= 2
    assert not any("ignore_imports" in contract for contract in contracts)


# Where settings of scoring, ranking and searching are written down: class or function, and its file.
SIGNATURES = {
    "ScoringSettings": "scoring/settings.py",
    "ZeroShotSelector": "selection/selector.py",
    "ZeroShotSearch": "search/zero_shot.py",
    "RunOptions": "cli/inputs.py",
    "rank": "cli/commands.py",
    "score": "cli/commands.py",
    "search": "cli/commands.py",
    "Scorer": "scoring/scorer.py",
}
SCORE = "scoring/single.py"  # the function `score`
# 80 before finals had rounds, patience and a limit of time, 83 before callbacks, 84 before finals had an executor of
# their own (a training needs other limits of time and memory, and another number of workers, than scoring), 85 before
# the agreement of rounds that finals ask for could be set.
MOST_SETTINGS = 86


def declared(name: str, file: str) -> list[str]:
    """List the parameters of a function, or the fields of a dataclass, except fields that are not arguments.

    A parameter that stands for the options of a class (`OptionsOf`) declares none, nor do ``**settings``.
    """
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name)
    if isinstance(node, ast.FunctionDef):
        written = [(each.arg, ast.unparse(each.annotation)) for each in (*node.args.args, *node.args.kwonlyargs)]
    else:
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        written = [
            (ast.unparse(each.target), ast.unparse(each.annotation))
            for each in fields
            if each.value is None or "init=False" not in ast.unparse(each.value)
        ]
    return [
        argument
        for argument, kind in written
        if not kind.startswith(("KW_ONLY", "ClassVar")) and "OptionsOf" not in kind
    ]


def test_few_places_ask_whether_data_is_a_data_module() -> None:
    calls = {
        file.relative_to(PACKAGE).as_posix(): num
        for file in FILES
        if (num := len(re.findall(r"(?<!def )\bis_datamodule\(", file.read_text(encoding="utf-8"))))
    }
    assert sum(calls.values()) <= 4, calls
    assert len(calls) <= 2, calls


def test_settings_are_written_once() -> None:
    found = {name: declared(name, file) for name, file in SIGNATURES.items()} | {SCORE: declared("score", SCORE)}
    assert sum(map(len, found.values())) <= MOST_SETTINGS, found
    assert {"num_batches", "seed", "precision"} <= set(found["ScoringSettings"])
    shared = set(found["ScoringSettings"])
    own = [found[name] for name in ("ZeroShotSelector", "ZeroShotSearch", "rank", "search")]
    assert [shared & set(names) for names in own] == [set()] * 4


UPPER_HALF = [
    "bridge",
    "callbacks",
    "cli",
    "integrations",
    "report",
    "results",
    "scoring",
    "search",
    "selection",
    "zoo",
]
# As the first word of a name; not "need" or "seed", nor verbs that look like their participles, such as "read".
PARTICIPLE = re.compile(
    r"(?:not_)?(?:[a-z]*[^e]ed|bound|broken|brought|built|caught|chosen|done|drawn|found|given|gone|heard|held|hidden|kept"
    r"|known|left|lost|made|met|said|seen|sent|shown|spent|spoken|taken|thrown|told|torn|won|worn|written)(?![a-z])"
)
# Noun phrases, and the constructors `ScoreCard.failed` and `ZooModel.untrained`.
ALLOWED = {"untrained", "_saved_tensors", "_stated_classes", "failed", "held_out_difference", "published_accuracy"}


def test_functions_have_the_names_of_verbs_or_nouns() -> None:
    """Properties may read as adjectives, and context managers as the state that holds in their body."""
    found = set()
    for file in FILES:
        if file.relative_to(PACKAGE).parts[0] not in UPPER_HALF:
            continue
        for _, function in functions(file):
            decorators = {ast.unparse(each).rpartition(".")[2] for each in function.decorator_list}
            if decorators & {"property", "cached_property", "contextmanager"}:
                continue
            if PARTICIPLE.match(function.name.strip("_")):
                found.add(function.name)
    assert found <= ALLOWED


@pytest.mark.parametrize("name", ["listed", "made_here", "not_loaded", "chosen", "kept"])
def test_a_participle_is_found(name: str) -> None:
    assert PARTICIPLE.match(name)


@pytest.mark.parametrize("name", ["list", "read", "seed_all", "need", "reseed", "cut", "fit", "madelon", "is_used"])
def test_a_verb_is_no_participle(name: str) -> None:
    assert not PARTICIPLE.match(name)
