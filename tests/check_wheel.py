"""Check what a built wheel holds: `python tests/check_wheel.py DIST` raises if it is not what we ship."""

import sys
import zipfile
from pathlib import Path

PACKAGES = {"lpfamily", "lpfamily_numpy", "lpfamily_torch", "lpfamily_jax", "lpfamily_reference"}
ROOT = Path(__file__).parent.parent


def main(folder: Path) -> None:
    (wheel,) = folder.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    packed = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    tracked = {
        str(path.relative_to(parent))
        for parent in (ROOT, ROOT / "backends", ROOT / "reference")
        for package in PACKAGES
        for path in (parent / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    if packed != tracked:
        raise SystemExit(f"{wheel.name} and the tree differ in {sorted(packed ^ tracked)}")
    for needed in ("entry_points.txt", "licenses/LICENSE"):
        if not any(name.endswith(f".dist-info/{needed}") for name in names):
            raise SystemExit(f"{wheel.name} lacks {needed}")
    if "lpfamily/py.typed" not in names:
        raise SystemExit(f"{wheel.name} is not marked as typed")
    print(f"{wheel.name}: {len(packed)} files of {len(PACKAGES)} packages, as in the tree")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
