"""What the documentation shows is true: the README's code runs, and examples give what they say."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

import pytest
from rustbn import _rustbn

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_code_of_the_readme_runs(code: str) -> None:
    exec(compile(code, str(README), "exec"), {"__name__": "readme"})


def test_the_readme_has_code() -> None:
    assert BLOCKS


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
