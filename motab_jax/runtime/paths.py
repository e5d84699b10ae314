"""Where the shipped recipes are: `configs/` in a checkout, `motab_jax/configs/` in an installed copy."""

from pathlib import Path

from motab_jax.config import UserError

PACKAGE = Path(__file__).resolve().parents[1]


def recipe_path(name: str, package: Path = PACKAGE) -> Path:
    """The YAML file of a shipped recipe; a checkout's `configs/` comes before an installed copy's.

    Args:
      name: such as `quickstart` or `quickstart.yaml`.
      package: the folder of the package.

    Raises:
      UserError: there is none of that name; it lists the recipes.
    """
    folders = [folder for folder in (_checkout(package), package / "configs") if folder is not None and folder.is_dir()]
    for folder in folders:
        path = folder / f"{name.removesuffix('.yaml')}.yaml"
        if path.is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(f"there is no recipe '{name}'; the shipped ones are: {', '.join(known) or 'none'}")


def _checkout(package: Path) -> Path | None:
    """`configs/` beside the package, if the package is in a checkout (site-packages may hold another's configs)."""
    root = package.parent
    return root / "configs" if (root / "setup.py").is_file() else None
