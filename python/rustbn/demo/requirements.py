"""The packages that only the demonstration needs: the extra ``rustbn[demo]``."""

from importlib.util import find_spec

PACKAGES = {
    "matplotlib": "matplotlib",
    "mlxtend": "mlxtend",
    "rich": "rich",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "threadpoolctl": "threadpoolctl",
}


class MissingPackageError(ImportError):
    """A package of the extra ``rustbn[demo]`` is not installed; the message says how to get it."""


def require(*modules: str) -> None:
    """Raise `MissingPackageError` if one of the modules cannot be found."""
    missing = [PACKAGES[module] for module in modules if not _found(module)]
    if missing:
        raise MissingPackageError(
            f"the demonstration needs {', '.join(missing)}: pip install 'rustbn[demo]'"
        )


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # sys.modules has None for it
        return False
