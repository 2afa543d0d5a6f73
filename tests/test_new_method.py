"""docs/new_method.md does what it says: its three files, written down in a folder of their own, keep every promise."""

import os
import re
import subprocess
import sys

from tests.runs import ROOT

PAGE = ROOT / "docs" / "new_method.md"


def test_the_page_is_a_method_that_keeps_every_promise(tmp_path):
    blocks = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL))
    assert list(blocks) == ["waves/forecast.py", "configs/waves/forecast.py", "tests/waves/test_forecast.py"]
    for name, text in blocks.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "QUINTET_CONFIGS": str(tmp_path / "configs")}
    generic = [str(ROOT / "tests" / f"test_{name}.py") for name in ("runs", "lowering", "processes", "make")]
    own = str(tmp_path / "tests" / "waves" / "test_forecast.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "forecast", "-rA", *generic, own]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-3000:]
    for promise in ("resumed_run_equals", "sharded_step_equals", "two_processes_equal", "lowers_for_tpu", "make_opens_nothing"):
        assert re.search(rf"PASSED .*{promise}\S*forecast", run.stdout), promise


def test_a_newcomer_reads_and_writes_little():
    read = [ROOT / "training" / "method.py", ROOT / "training" / "example.py", PAGE]
    assert sum(len(path.read_text().splitlines()) for path in read) < 400
