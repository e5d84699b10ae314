"""Where the shipped recipes lie: `configs/` in a checkout, `motab_jax/configs/` in an installed copy."""

from pathlib import Path

from motab_jax.config import UserError

_PACKAGE = Path(__file__).resolve().parents[1]


def recipe_path(name: str) -> Path:
    """The YAML file of a shipped recipe, by name: `quickstart` or `quickstart.yaml`.

    A checkout's `configs/` comes before an installed copy's. Raises UserError that lists the recipes there are.
    """
    folders = [folder for folder in (_checkout(), _PACKAGE / "configs") if folder is not None and folder.is_dir()]
    for folder in folders:
        path = folder / f"{name.removesuffix('.yaml')}.yaml"
        if path.is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(f"there is no recipe '{name}'; the shipped ones are: {', '.join(known) or 'none'}")


def _checkout() -> Path | None:
    """`configs/` beside the package, if the package lies in a checkout (site-packages may hold another's configs)."""
    root = _PACKAGE.parent
    return root / "configs" if (root / "setup.py").is_file() else None
