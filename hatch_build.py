"""Compiles what a ConvNet computes in float32, for the processors that torch tells apart.

Where that cannot be done the package is installed without: torch's own functions then do the same
work in about twice the time.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src", "medistill", "nets")
FLAGS = ["-std=gnu11", "-O3", "-shared", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-Wall"]
LINKED = ["-Wl,-z,defs", "-lm"]
X86 = {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mfma", *(f"-mavx512{part}" for part in ("f", "vl", "bw", "dq"))]}
"""Compiler's flags by what ``torch.backends.cpu.get_cpu_capability`` says of a processor."""


def compiled(source: Path, folder: Path) -> list[Path]:
    """Compile ``kernels.c`` with its header into a folder; no libraries where that cannot be done, which is said."""
    if not sys.platform.startswith("linux") or platform.machine().lower() not in ("x86_64", "amd64"):
        return _none(f"{sys.platform} on {platform.machine()} was never measured")
    # GNU's compiler by preference: its OpenMP is that of torch, so that both use the same threads.
    asked = shlex.split(os.environ.get("CC", "")) or [shutil.which("gcc") or "cc"]
    number = int(hashlib.sha256(source.read_bytes() + source.with_suffix(".h").read_bytes()).hexdigest()[:15], 16)
    found = []
    for name, flags in X86.items():
        library = folder / f"kernels-{name}.so"
        command = [*asked, *FLAGS, *flags, f"-DSOURCE={number}L", str(source), "-o", str(library), *LINKED]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            return _none(str(error))
        if done.returncode or not library.exists():
            return _none(f"{shlex.join(asked)} ended with {done.returncode}\n{done.stderr}")
        found.append(library)
    return found


def _none(why: str) -> list[Path]:
    sys.stderr.write(f"medistill: nothing was compiled, torch's functions will be used: {why}\n")
    return []


class Kernels(BuildHookInterface[Any]):
    """Hatch's hook: a wheel with compiled kernels is of this platform, one without is of any.

    An installation in place finds them in the source tree, where older ones are removed.
    """

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the files are gathered."""
        tree = Path(self.root, FOLDER)
        self.folder = Path(tempfile.mkdtemp())
        libraries = compiled(tree / "kernels.c", self.folder)
        if version == "editable":
            try:
                for old in tree.glob("kernels-*.so"):
                    old.unlink()
                for library in libraries:
                    shutil.copy(library, tree)
            except OSError as error:
                _none(str(error))
        elif libraries:
            where = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data.update(pure_python=False, tag=f"py3-none-{where}")
            for library in libraries:
                build_data["force_include"][str(library)] = f"medistill/nets/{library.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled on the way."""
        shutil.rmtree(self.folder, ignore_errors=True)
