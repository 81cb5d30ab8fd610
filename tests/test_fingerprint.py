import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import nadpipe.stages
from nadpipe.fingerprint import code_fingerprint, module_closure

STAGES = [module.name for module in pkgutil.iter_modules(nadpipe.stages.__path__)]


_LOADED = """
import importlib, json, sys
loaded = {}
for stage in sys.argv[1:]:
    for name in [name for name in sys.modules if name.startswith("nadpipe")]:
        del sys.modules[name]
    importlib.import_module(f"nadpipe.stages.{stage}")
    loaded[stage] = [name for name in sys.modules if name.startswith("nadpipe.")]
print(json.dumps(loaded))
"""


def test_a_closure_holds_every_module_of_the_package_that_the_stage_loads():
    done = subprocess.run([sys.executable, "-c", _LOADED, *STAGES], capture_output=True, text=True, check=True)
    folders = {"nadpipe.stages", "nadpipe.demo"}
    for stage, loaded in json.loads(done.stdout).items():
        assert set(loaded) - folders == set(module_closure(f"nadpipe.stages.{stage}")) - folders


def fingerprint(folder, stage="fit_directions"):
    code = f"from nadpipe.fingerprint import *; print(PACKAGE, code_fingerprint('nadpipe.stages.{stage}'))"
    out = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert out.startswith(str(folder))
    return out.split()[-1]


def test_only_code_that_the_stage_runs_counts(tmp_path):
    shutil.copytree(Path(nadpipe.__file__).parent, tmp_path / "nadpipe", ignore=shutil.ignore_patterns("*.safetensors"))
    before = fingerprint(tmp_path)
    numerics = tmp_path / "nadpipe" / "directions.py"
    source = numerics.read_text()
    reworded = source.replace('"""The direction that', '"""Other words for the direction that').replace(
        "    def", "    # why\n    def"
    )
    assert reworded != source
    numerics.write_text(reworded)
    assert fingerprint(tmp_path) == before
    (tmp_path / "nadpipe" / "segmentation.py").write_text("x = 1\n")
    assert fingerprint(tmp_path) == before
    numerics.write_text(source.replace("_ZERO = 1e-6", "_ZERO = 1e-7"))
    assert fingerprint(tmp_path) != before


def test_stages_have_fingerprints_of_their_own():
    assert len({code_fingerprint(f"nadpipe.stages.{stage}") for stage in STAGES}) == len(STAGES)
