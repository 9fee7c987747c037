"Tests marked `slow` run only with --slow, tests marked `cuda` only where there is a CUDA device."

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

# no test reads or writes the user's home: the package wn would keep its database there
wn_folder = tempfile.TemporaryDirectory(prefix="wn-")
os.environ["WN_DATA_DIR"] = wn_folder.name

# a job that a shell starts in the background ignores Ctrl-C, which the tests of interruptions need
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_thread():
    "With one thread a sum has one order, and weights can be compared to the last bit"
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def lasting():
    "What a look finds each time for ten seconds: another test may be about to use it or clear it"

    def look_again(look, *arguments):
        found = look(*arguments)
        for _ in range(100):
            if not found:
                break
            time.sleep(0.1)
            found &= look(*arguments)
        return found

    return look_again


@pytest.fixture
def in_pieces(monkeypatch):
    "A function that calls another at a deadline that has passed until it ends: result, calls"
    from hydramix_nb.training import OutOfTime

    def run(function):
        calls = 1
        with monkeypatch.context() as late:
            late.setenv("HYDRAMIX_DEADLINE", "1")
            while True:
                try:
                    return function(), calls
                except OutOfTime:
                    calls += 1

    return run


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory):
    "The drawn scenes in COCO's format: train and val"
    from hydramix_nb.cutouts import write_cutouts
    from hydramix_nb.scenes import read_coco

    folder = write_cutouts(tmp_path_factory.mktemp("cutouts"))
    return read_coco(folder), read_coco(folder, "val")


@pytest.fixture(scope="session")
def quick_python():
    "Start of a command: with `-c CODE`, Python that need not import torch. See forked.py"
    forked = Path(__file__).with_name("forked.py")
    with tempfile.TemporaryDirectory(prefix="forked-") as short:  # sockets have short names
        place = Path(short, "socket")
        command = [sys.executable, str(forked), str(place)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            while not place.exists():
                assert process.poll() is None, "no process to fork from"
                time.sleep(0.05)
            yield command
            process.kill()


@pytest.fixture
def start_python(quick_python):
    "A function that starts code in a process of its own, whose output can be read"

    def start(code, *arguments):
        command = [*quick_python, "-c", code, *map(str, arguments)]
        streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return subprocess.Popen(command, text=True, **streams)

    return start


@pytest.fixture(scope="session")
def forking_kernels(quick_python, tmp_path_factory):
    "A folder for JUPYTER_PATH, whose Python kernels are forked from one process: see forked.py"
    folder = tmp_path_factory.mktemp("kernels")
    spec = dict(
        argv=[*quick_python, "{connection_file}"], display_name="python3", language="python"
    )
    (folder / "kernels/python3").mkdir(parents=True)
    (folder / "kernels/python3/kernel.json").write_text(json.dumps(spec))
    return folder


@pytest.fixture
def quick_kernels(forking_kernels, monkeypatch):
    "Kernels that start in a tenth of a second, for notebooks that this test or its kernels execute"
    monkeypatch.setenv("JUPYTER_PATH", str(forking_kernels))


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run tests that take minutes, too")


def pytest_collection_modifyitems(config, items):
    def skip(mark, reason):
        for item in items:
            if mark in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))

    # the site, which one process builds and looks at, and notebooks take longest: they begin, so
    # that no process waits for one of them at the end
    first = {"test_site.py": 0, "test_outputs.py": 1}
    items.sort(key=lambda item: first.get(item.path.name, 2))
    if not config.getoption("--slow"):
        skip("slow", "takes minutes: run with --slow")
    if any("cuda" in item.keywords for item in items):
        import torch

        if not torch.cuda.is_available():
            skip("cuda", "needs a CUDA device")
