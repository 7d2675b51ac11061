"""The packages that only the demonstration needs: the extra ``rustbn[demo]``."""

from importlib.util import find_spec

PACKAGES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"}


class MissingPackageError(ImportError):
    """A package of the extra ``rustbn[demo]`` is not installed; the message says how to get it."""


def require(*modules: str) -> None:
    """Raise `MissingPackageError` if one of the modules cannot be found."""
    missing = [PACKAGES[module] for module in modules if find_spec(module) is None]
    if missing:
        raise MissingPackageError(
            f"the demonstration needs {', '.join(missing)}: pip install 'rustbn[demo]'"
        )
