"""What the documentation shows is true: its code runs, examples give what they say, links lead on.

The blocks of a page run in their order and share their names, as if pasted into one session:
``python`` blocks run, ``pycon`` blocks give what they say.
"""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import types
from pathlib import Path

import pytest
import rustbn
from rustbn import _rustbn

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
    if "_build" not in path.parts
}
# Pages that are made of docstrings.
REFERENCE = {path.stem: path.read_text(encoding="utf-8") for path in ROOT.glob("docs/api/*.rst")}
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.M | re.S)
# A block that imports one of these runs where it is installed. No other block depends on it.
FRAMEWORK = re.compile(r"^(?:>>> )?import (torch|keras|dask)\b", re.M)


def run(text: str, title: str, framework: str | None = None) -> int:
    """Run the blocks of a page, those that need a framework only for this one; return how many."""
    names = vars(types.ModuleType("page"))
    ran = 0
    for block in BLOCK.finditer(text):
        kind, code = block.groups()
        if not set(FRAMEWORK.findall(code)) <= {framework}:
            continue
        line = text.count("\n", 0, block.start(2))
        if kind == "python":
            exec(compile("\n" * line + code, title, "exec"), names)
        else:
            examples = doctest.DocTestParser().get_doctest(code, {}, title, title, line)
            examples.globs = names
            assert doctest.DocTestRunner().run(examples, clear_globs=False).failed == 0
        ran += 1
    return ran


RUNS = [
    (page, framework)
    for page, text in PAGES.items()
    if BLOCK.search(text)
    for framework in [None, *sorted(set(FRAMEWORK.findall(text)))]
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras 3.15
@pytest.mark.parametrize(("page", "framework"), RUNS)
def test_the_code_of_a_page_runs(
    page: str, framework: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")  # read when keras is imported
    if framework is not None:
        pytest.importorskip(framework)
    monkeypatch.chdir(tmp_path)
    assert run(PAGES[page], page, framework)


def test_pages_have_code() -> None:
    assert {"README.md", "docs/tutorial.md", "docs/mathematics.md"} <= {page for page, _ in RUNS}


@pytest.mark.parametrize("kind", ["python", "pycon"])
def test_a_page_that_is_wrong_is_found(kind: str) -> None:
    code = {"python": "assert 0.1 + 0.2 == 0.3", "pycon": ">>> 0.1 + 0.2\n0.3"}[kind]
    with pytest.raises(AssertionError):
        run(f"Text.\n\n```{kind}\n{code}\n```\n", "wrong")


def prose(text: str) -> str:
    """Return a page without its code and comments."""
    return re.sub(r"^```.*?^```$|<!--.*?-->", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """Return the names that GitHub and the site give to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_repository_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(PAGES[page])):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_the_api_reference_has_everything() -> None:
    text = "\n".join(REFERENCE.values())
    described = set(re.findall(r"^\.\. auto(?:function|class|data):: (?:\w+\.)*(\w+)", text, re.M))
    assert set(rustbn.__all__) <= described


def test_the_api_reference_calls_an_affine_as_the_stub_does() -> None:
    # Python keeps neither signature nor text of a call that is written in C or Rust.
    stub = ast.parse(Path(_rustbn.__file__).with_name("_rustbn.pyi").read_text(encoding="utf-8"))
    (call,) = (
        function
        for node in stub.body
        if isinstance(node, ast.ClassDef) and node.name == "Affine"
        for function in node.body
        if isinstance(function, ast.FunctionDef) and function.name == "__call__"
    )
    for argument in [*call.args.args, *call.args.kwonlyargs]:
        argument.annotation = None
    signature = ast.unparse(call.args).removeprefix("self, ")
    assert f".. py:method:: __call__({signature})\n" in REFERENCE["functional"]


DOCUMENTED = [name for name in _rustbn.__all__ if callable(getattr(_rustbn, name))]
WITH_EXAMPLES = [name for name in DOCUMENTED if ">>>" in getattr(_rustbn, name).__doc__]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_say(name: str) -> None:
    text = inspect.getdoc(getattr(_rustbn, name))
    assert text is not None
    examples = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert doctest.DocTestRunner().run(examples).failed == 0


def test_the_extension_has_examples() -> None:
    assert {"Moments", "Affine", "batch_norm"} <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_everything_is_documented(name: str) -> None:
    text = inspect.getdoc(getattr(_rustbn, name))
    assert text is not None
    # A line that is a sentence first, and sections underlined as numpydoc wants them.
    assert re.match(r".*\.(\n\n|$)", text), text.splitlines()[0]
    sections = r"^(Parameters|Returns|Raises|Notes|Examples)\n(.*)$"
    for title, line in re.findall(sections, text, re.M):
        assert line == "-" * len(title), title
