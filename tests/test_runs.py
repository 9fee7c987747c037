"Runs under fire: kill -9, Ctrl-C, two sweeps at once, failing notebooks, other machines."

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from hydramix_nb import archives, execution, files, gan, results, runs, speed, sweeps, tables
from hydramix_nb import workers
from hydramix_nb.files import read_tensors, weights_digest

for package in ("papermill", "distributed", "pandas"):
    pytest.importorskip(package)
psutil = pytest.importorskip("psutil")

ROOT = Path(__file__).resolve().parents[1]
SLOW = "time.sleep(seconds)\nvalue = x ** 2"


def toy(folder, work=SLOW):
    "A notebook that squares a number and leaves a line in `count` each time it begins"
    folder.mkdir(parents=True, exist_ok=True)
    parameters = """x: float = 1.0  # number
seconds: float = 0.0  # how long
out: str = "."  # where
result: str = "result.json"  # name"""
    log = f"with open({str(folder / 'count')!r}, 'a') as f:"
    cells = [
        new_code_cell(parameters, metadata=dict(tags=["parameters"])),
        new_code_cell("import json, os, pathlib, time"),
        new_code_cell(log + "\n    f.write(f'{x:g} {os.getpid()}\\n')"),
        new_code_cell(work),
        new_code_cell("pathlib.Path(out, result).write_text(json.dumps(dict(value=value)))"),
    ]
    path = folder / "toy.ipynb"
    nbformat.write(
        new_notebook(
            cells=cells,
            metadata=dict(
                kernelspec=dict(name="python3", language="python", display_name="python3")
            ),
        ),
        path,
    )
    return path


def begun(folder):
    "(x, pid of the kernel) of every execution so far"
    try:
        return [
            (float(x), int(pid))
            for x, pid in (line.split() for line in (folder / "count").read_text().splitlines())
        ]
    except FileNotFoundError:
        return []


def wait_for(condition, seconds=600):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.1)


def started(folder, xs, workers=0, seconds=0.0):
    "A sweep in a process of its own"
    code = f"""
import json
from hydramix_nb import sweeps

if __name__ == "__main__":
    parameters = [dict(x=x, seconds={seconds}) for x in {list(xs)}]
    tasks = sweeps.plan({str(folder / "toy.ipynb")!r}, parameters, {str(folder / "runs")!r})
    outcomes = sweeps.sweep(tasks, workers={workers}, progress=False)
    print(json.dumps([o.state for o in outcomes]))
"""
    script = folder / f"sweep{len(list(folder.glob('sweep*.py')))}.py"
    script.write_text(code)
    return subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, cwd=folder
    )


def table(folder):
    return sorted(
        json.loads(p.read_text())["value"] for p in (folder / "runs/toy").glob("*/result.json")
    )


def leftovers(folder):
    return [
        p for p in (folder / "runs").rglob("*") if "partial" in p.name or p.name == "pending.json"
    ]


# one run


def test_unknown_and_mistyped_parameters_are_refused(tmp_path):
    notebook = toy(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'seconds'"):
        sweeps.plan(notebook, [dict(x=1), dict(second=1.0)], tmp_path / "runs")
    with pytest.raises(TypeError, match="x is float, got str"):
        sweeps.plan(notebook, [dict(x="1")], tmp_path / "runs")
    with pytest.raises(TypeError, match="x is float, got bool"):
        sweeps.plan(notebook, [dict(x=True)], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_notebook_without_tagged_parameters_is_refused(tmp_path):
    nbformat.write(
        new_notebook(
            cells=[new_code_cell("x: int = 1  # one")],
            metadata=dict(
                kernelspec=dict(name="python3", language="python", display_name="python3")
            ),
        ),
        tmp_path / "plain.ipynb",
    )
    with pytest.raises(ValueError, match="no cell tagged `parameters`"):
        sweeps.plan(tmp_path / "plain.ipynb", [dict(x=2)], tmp_path / "runs")


def test_a_default_that_is_no_plain_value_is_named(tmp_path):
    notebook = toy(tmp_path)
    text = notebook.read_text()
    assert "x: float = 1.0" in text
    notebook.write_text(text.replace("x: float = 1.0", "x: float = abs(1)"))
    with pytest.raises(
        ValueError, match=r"toy.ipynb, default of parameter x: abs\(1\) is no plain"
    ):
        sweeps.plan(notebook, [dict(x=1)], tmp_path / "runs")


def test_a_failed_run_is_kept_listed_and_retried_on_request(tmp_path, capsys):
    notebook = toy(tmp_path, "value = 1 / (x - 1) if not os.path.exists('fixed') else 7.")
    os.chdir(tmp_path)
    try:
        plan = lambda **more: sweeps.plan(
            notebook, [dict(x=1), dict(x=2)], tmp_path / "runs", **more
        )
        bad, good = sweeps.sweep(plan(), progress=False)
        assert (bad.state, good.state) == ("failed", "done") and "ZeroDivisionError" in bad.error
        folder = Path(bad.folder)
        assert (
            "division" in (folder / "toy.ipynb").read_text()
            and "ZeroDivisionError" in json.loads((folder / "error.json").read_text())["traceback"]
        )
        assert not (folder / "result.json").exists() and not leftovers(tmp_path)
        assert [o.new for o in sweeps.sweep(plan(), progress=False)] == [False, False]
        assert "1 done, 0 left, 1 failed" in sweeps.summary(plan()) and "x=1.0" in sweeps.summary(
            plan()
        )
        (tmp_path / "fixed").touch()
        bad, good = sweeps.sweep(plan(retry=True), progress=False)
        assert (bad.state, bad.new, good.new) == ("done", True, False) and not (
            folder / "error.json"
        ).exists()
    finally:
        os.chdir(ROOT)


def test_a_kernel_that_dies_is_tried_again(tmp_path):
    notebook = toy(
        tmp_path,
        f"begun = len(open({str(tmp_path / 'count')!r}).readlines())\n"
        "if begun < 2: os.kill(os.getpid(), 9)\nvalue = x",
    )
    (outcome,) = sweeps.sweep(sweeps.plan(notebook, [dict(x=5)], tmp_path / "runs"), progress=False)
    assert outcome.state == "done" and len(begun(tmp_path)) == 2


def test_a_kernel_that_always_dies_is_a_failure(tmp_path):
    (outcome,) = sweeps.sweep(
        sweeps.plan(toy(tmp_path, "os.kill(os.getpid(), 9)"), [dict(x=5)], tmp_path / "runs"),
        progress=False,
    )
    assert (
        outcome.state == "failed"
        and "DeadKernelError" in outcome.error
        and len(begun(tmp_path)) == 3
    )


def test_a_notebook_that_writes_no_result_is_a_failure(tmp_path):
    (outcome,) = sweeps.sweep(
        sweeps.plan(
            toy(tmp_path, "value = 1; result = 'elsewhere.json'"), [dict(x=5)], tmp_path / "runs"
        ),
        progress=False,
    )
    assert outcome.state == "failed" and "ended without a result" in outcome.error


def test_braces_in_paths_and_no_sockets_left(tmp_path, lasting):
    def left():
        "Folders of kernels that no process names"
        commands = [" ".join(q.info["cmdline"] or []) for q in psutil.process_iter(["cmdline"])]
        new = set(Path(tempfile.gettempdir()).glob("hydramix-*")) - before
        return {p for p in new if not any(str(p) in command for command in commands)}

    folder, before = tmp_path / "a {b}", set(Path(tempfile.gettempdir()).glob("hydramix-*"))
    (outcome,) = sweeps.sweep(
        sweeps.plan(toy(folder), [dict(x=3)], folder / "runs"), progress=False
    )
    assert outcome.result == dict(value=9.0)
    assert not (found := lasting(left)), f"nobody uses {found}"


def test_a_folder_that_cannot_be_written_is_an_error_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        sweeps.sweep(sweeps.plan(toy(tmp_path), [dict(x=1)], tmp_path / "file"), progress=False)
    assert not begun(tmp_path)


# interruptions


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_leaves_nothing_broken(tmp_path, workers):
    toy(tmp_path)
    first = started(tmp_path, [1, 2, 3], workers, seconds=600.0)
    wait_for(lambda: begun(tmp_path))
    first.send_signal(signal.SIGINT)
    first.wait(300)
    assert first.returncode != 0
    wait_for(
        lambda: (
            not any(
                psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
                for _, pid in begun(tmp_path)
            )
        ),
        60,
    )
    assert not list((tmp_path / "runs").rglob("result.json")) and not list(
        (tmp_path / "runs").rglob("error.json")
    )
    toy(tmp_path, "value = x ** 2")
    second = started(tmp_path, [1, 2, 3])
    assert json.loads(second.communicate()[0]) == ["done"] * 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sweep_killed_in_the_middle_goes_on_to_the_same_table(tmp_path, workers):
    toy(tmp_path, "time.sleep(.5)\nvalue = x ** 2")
    first = started(tmp_path, range(5), workers)
    wait_for(lambda: len(table(tmp_path)) >= 1 and len(begun(tmp_path)) >= 2)
    children = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    psutil.wait_procs(children, 30)
    assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE], (
        "orphans go on working"
    )
    assert json.loads(started(tmp_path, range(5), workers).communicate()[0]) == ["done"] * 5
    assert table(tmp_path) == [0.0, 1.0, 4.0, 9.0, 16.0]
    assert not list((tmp_path / "runs").rglob("error.json"))


def test_a_worker_killed_in_the_middle_loses_only_its_run(tmp_path):
    toy(tmp_path, "time.sleep(1.5)\nvalue = x ** 2")
    sweep = started(tmp_path, range(4), workers=2)
    wait_for(lambda: begun(tmp_path))
    kernel = psutil.Process(begun(tmp_path)[0][1])
    worker = kernel.parent()
    assert worker.pid != sweep.pid
    worker.kill()
    assert json.loads(sweep.communicate(timeout=1200)[0]) == ["done"] * 4
    assert table(tmp_path) == [0.0, 1.0, 4.0, 9.0]
    counts = [sum(x == n for x, _ in begun(tmp_path)) for n in range(4)]
    assert sorted(counts) == [1, 1, 1, 2], f"executions of each run: {counts}"


def test_two_sweeps_at_once_do_each_run_once(tmp_path):
    toy(tmp_path, "time.sleep(.3)\nvalue = x ** 2")
    both = [started(tmp_path, range(4)), started(tmp_path, range(4), workers=2)]
    assert [json.loads(p.communicate(timeout=1200)[0]) for p in both] == [["done"] * 4] * 2
    assert sorted(x for x, _ in begun(tmp_path)) == [0.0, 1.0, 2.0, 3.0]


# what a run is made of


def with_data(folder):
    "A run that knows a data set of one file, and how to plan it again"
    notebook = toy(folder, "value = float(len(open(dataset.partition(':')[2]).read()))")
    nb = nbformat.read(notebook, 4)
    nb.cells[0].source += '\ndataset: str = "npz:none"  # data'
    nbformat.write(nb, notebook)
    file = folder / "images.npz"
    file.write_text("1234")
    parameters = dict(x=1, dataset=f"npz:{file}")
    return file, lambda: sweeps.plan(notebook, [parameters], folder / "runs")


def test_a_run_whose_images_have_changed_is_not_done(tmp_path):
    file, plan = with_data(tmp_path)
    (outcome,) = sweeps.sweep(plan(), progress=False)
    assert outcome.result == dict(value=4.0)
    assert "1 done, 0 left" in sweeps.summary(plan())
    file.write_text("12345678")
    said = sweeps.summary(plan())
    assert "0 done, 1 left" in said and "images.npz has changed" in said
    (outcome,) = sweeps.sweep(plan(), progress=False)
    assert outcome.new and outcome.result == dict(value=8.0)
    assert table(tmp_path) == [8.0]
    assert "1 done, 0 left" in sweeps.summary(plan())
    file.unlink()
    assert "1 done, 0 left" in sweeps.summary(plan()), "there is nothing to compare with"


def test_unchanged_files_are_not_read_again(tmp_path, monkeypatch):
    file, plan = with_data(tmp_path)
    sweeps.sweep(plan(), progress=False)
    read = []
    monkeypatch.setattr("hashlib.file_digest", lambda *a: read.append(a))
    plan()
    assert not read


def test_litter_among_the_images_does_not_change_their_digest(tmp_path):
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    assert runs._content_digest(tmp_path, {}) == "862969ce481ddf65", "as earlier versions have it"
    for name in (".cache/x.lock", ".git/a/b", "cat/.1.png", "cat/Thumbs.db", "desktop.ini"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("litter")
    assert runs._content_digest(tmp_path, {}) == "862969ce481ddf65"
    linked = tmp_path.with_name("linked")
    linked.mkdir()
    for name in ("cat", "dog"):  # links to folders are read, so what is behind them counts
        (linked / name).symlink_to(tmp_path / name)
    assert runs._content_digest(linked, {}) == "862969ce481ddf65"
    (tmp_path / ".cache").rename(tmp_path / "cache")
    assert runs._content_digest(tmp_path, {}) != "862969ce481ddf65"


@pytest.fixture
def no_kernels(monkeypatch):
    "Notebooks are executed in this process, cell by cell"

    def execute(notebook, output, parameters, *_):
        space = {}
        for cell in nbformat.reads(notebook, 4).cells:
            try:
                exec(cell.source, space)
            except Exception as e:
                e.ename, e.evalue = type(e).__name__, str(e)  # as papermill has them
                raise
            space |= parameters if "parameters" in cell.metadata.get("tags", []) else {}
        Path(output).write_text(notebook)

    monkeypatch.setattr(execution, "_execute_notebook", execute)


@pytest.mark.parametrize("change", ["library", "notebook", "comment in markdown"])
def test_what_other_code_has_done_is_done_and_the_summary_says_so(
    change, tmp_path, no_kernels, monkeypatch
):
    plan = lambda: sweeps.plan(tmp_path / "toy.ipynb", [dict(x=3), dict(x=4)], tmp_path / "runs")
    toy(tmp_path)
    sweeps.sweep(plan()[:1], progress=False)
    assert "other code" not in sweeps.summary(plan())
    if change == "notebook":
        toy(tmp_path, "value = x ** 3")
    elif change == "library":
        monkeypatch.setattr(execution, "_code_digest", lambda: "other")
        execution._made_by.cache_clear()
    else:
        nb = nbformat.read(tmp_path / "toy.ipynb", 4)
        nb.cells.append(nbformat.v4.new_markdown_cell("All of it."))
        nbformat.write(nb, tmp_path / "toy.ipynb")
    said = sweeps.summary(plan())
    assert "1 done, 1 left" in said
    assert ("1 were done by other code than this" in said) == (not change.startswith("comment"))
    execution._made_by.cache_clear()


def test_results_from_before_there_was_a_note_of_their_code(tmp_path, no_kernels):
    plan = lambda: sweeps.plan(toy(tmp_path), [dict(x=3)], tmp_path / "runs")
    sweeps.sweep(plan(), progress=False)
    folder = plan()[0].folder
    (folder / "code.json").unlink()
    assert "other code" not in sweeps.summary(plan()), "nothing is known"
    (folder / "result.json").write_text(json.dumps(dict(value=9.0, code="abc")))
    assert "1 were done by other code" in sweeps.summary(plan())


def test_a_checkpoint_of_another_training_is_set_aside_and_the_run_begins_anew(
    tmp_path, no_kernels
):
    "Of several, its mixer's among them, all are"
    work = """from hydramix_nb.training import _checkpoint_header
for checkpoint in pathlib.Path(out).rglob("checkpoint.safetensors"):
    _checkpoint_header(checkpoint, '{"images": "these"}')
value = x ** 2"""
    (task,) = sweeps.plan(toy(tmp_path, work), [dict(x=3)], tmp_path / "runs")
    places = [task.folder / name for name in (".", "mixer/teacher", "mixer/pool")]
    for place in places:
        header = dict(kind="checkpoint", settings='{"images": "others"}')
        files.write_tensors(place / "checkpoint.safetensors", {}, header)
    (outcome,) = sweeps.sweep([task], progress=False)
    assert outcome.result == dict(value=9.0), outcome.error
    for place in places:
        assert files._read_header(place / "superseded.safetensors") == header
        assert not (place / "checkpoint.safetensors").exists()


def test_an_error_in_like_words_leaves_the_checkpoint_alone(tmp_path, no_kernels):
    work = "raise ValueError('image 3 belongs to another training set')"
    (task,) = sweeps.plan(toy(tmp_path, work), [dict(x=3)], tmp_path / "runs")
    task.folder.mkdir(parents=True)
    (task.folder / "checkpoint.safetensors").write_text("of this very run")
    (outcome,) = sweeps.sweep([task], progress=False)
    assert outcome.state == "failed" and "image 3" in outcome.error
    assert (task.folder / "checkpoint.safetensors").read_text() == "of this very run"


@pytest.mark.parametrize("text", ["{", "[1]", '{"/x": 3}', '{"/x": [1, 2, 3, 4]}'])
def test_a_damaged_note_of_digests_is_made_again(text, tmp_path, no_kernels):
    file, plan = with_data(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/.digests.json").write_text(text.replace("/x", str(file)))
    sweeps.sweep(plan(), progress=False)
    assert "1 done, 0 left" in sweeps.summary(plan())
    file.write_text("12345678")
    assert "0 done, 1 left" in sweeps.summary(plan())


def test_images_that_were_edited_otherwise_are_other_data(tmp_path, no_kernels):
    notebook, note = toy(tmp_path), tmp_path / "runs/generators/diffusemix/generated.json"
    nb = nbformat.read(notebook, 4)
    nb.cells[0].source += '\nmethod: str = "DiffuseMix"  # method'
    nbformat.write(nb, notebook)
    plan = lambda: sweeps.plan(notebook, [dict(x=3)], tmp_path / "runs")
    note.parent.mkdir(parents=True)
    note.write_text('{"steps": 2}')
    sweeps.sweep(plan(), progress=False)
    assert "1 done, 0 left" in sweeps.summary(plan())
    note.write_text('{"steps": 100}')
    said = sweeps.summary(plan())
    assert "0 done, 1 left" in said and "edited images has changed" in said
    note.unlink()
    assert "1 done, 0 left" in sweeps.summary(plan()), "there is nothing to compare with"


# several on one GPU


@pytest.fixture
def one_gpu(tmp_path, monkeypatch):
    "Commands of a machine with one GPU, whose MPS daemon notes what it is told"
    folder = tmp_path / "commands"
    folder.mkdir()
    (folder / "nvidia-smi").write_text('#!/bin/sh\n[ "$1" = -L ] && echo "GPU 0: A" || echo 1000\n')
    (folder / "nvidia-cuda-mps-control").write_text(
        f'#!/bin/sh\necho "$1 $(cat) ${{CUDA_VISIBLE_DEVICES-all}}" >> {folder}/told\n'
    )
    for command in folder.iterdir():
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    return folder


NAMES = ("CUDA_VISIBLE_DEVICES", "HYDRAMIX_TOGETHER", "CUDA_MPS_PIPE_DIRECTORY")


def test_runs_share_a_gpu(tmp_path, one_gpu, monkeypatch, capsys):
    monkeypatch.setattr(workers, "_TRIAL", "pass")
    work = f"value = [x ** 2, *(os.environ.get(name) for name in {NAMES})]"
    tasks = sweeps.plan(toy(tmp_path, work), [dict(x=x) for x in (2, 3)], tmp_path / "runs")
    assert "2 runs share each GPU: 0.5 GB for each" in sweeps.summary(tasks, 2)
    done = sweeps.sweep(tasks, workers=2, progress=False)
    assert "2 runs share each GPU, side by side" in capsys.readouterr().err
    squares, visible, share, pipes = zip(*(o.result["value"] for o in done), strict=True)
    assert (squares, visible, share) == ((4.0, 9.0), ("0", "0"), ("2", "2"))
    assert len(set(pipes)) == 1 and not Path(pipes[0]).exists()
    assert (one_gpu / "told").read_text() == "-d  all\n quit all\n"


def test_a_gpu_of_ones_own_needs_no_daemon(one_gpu, monkeypatch):
    with workers._side_by_side(1) as found:
        assert found == {}
    assert workers._memory_of_each(1) == ""
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/somebody/elses")
    with workers._side_by_side(2) as found:
        assert found == {}
    assert not (one_gpu / "told").exists()


def test_a_run_keeps_to_its_share_of_the_memory(monkeypatch):
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "mem_get_info", lambda device: (900, 1000))
    monkeypatch.setattr(cuda, "memory_reserved", lambda device: 100)
    others = dict(device=1, segment_pool_id=(0, 0), total_size=50, allocated_size=0)
    ours = others | dict(device=0, total_size=60, allocated_size=30)
    recorded = ours | dict(segment_pool_id=(0, 3), total_size=40, allocated_size=10)
    monkeypatch.setattr(cuda, "get_allocator_backend", lambda: "native")
    monkeypatch.setattr(cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cuda, "memory_snapshot", lambda: [others, ours, recorded])
    assert speed.free_memory("cuda") == 900 + 30
    monkeypatch.setenv("HYDRAMIX_TOGETHER", "4")
    assert speed.free_memory("cuda") == 1000 // 4 - 100 + 30
    monkeypatch.setattr(cuda, "mem_get_info", lambda device: (90, 1000))
    assert speed.free_memory("cuda") == 90 + 30, "others have taken more than their share"


def test_together_is_so_many_workers_for_each_gpu(one_gpu, tmp_path, main, monkeypatch):
    ask = [*TINY, "--methods", "Baseline", "--seeds", "0,1,2", "--out", str(tmp_path), "--dry_run"]
    assert "3 runs share each GPU" in main(*ask, "--together", "4").stdout
    assert not re.search("share|no GPU", main(*ask, "--workers", "gpu").stdout)
    engine = dict(workers="gpu", scheduler=None, resources=None, minutes=None, together="4")
    engine["device"] = "auto"
    assert tables._read_engine(engine)["workers"] == 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "no GPU was found" in main(*ask, "--workers", "gpu").stdout


# other machines


def test_any_scheduler_address(tmp_path):
    from distributed import LocalCluster

    tasks = sweeps.plan(toy(tmp_path), [dict(x=4)], tmp_path / "runs")
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        (outcome,) = sweeps.sweep(tasks, scheduler=cluster.scheduler_address, progress=False)
        assert outcome.result == dict(value=16.0)
        other = [replace(t, id="other", code="0000") for t in tasks]
        with pytest.raises(RuntimeError, match="install the same there"):
            sweeps.sweep(other, scheduler=cluster.scheduler_address, progress=False)


def test_results_travel_back_where_the_folder_is_not_shared(tmp_path):
    (task,) = sweeps.plan(toy(tmp_path), [dict(x=4)], tmp_path / "here")

    class Client:
        def submit(self, function, task, **_):
            from concurrent.futures import Future

            future = Future()
            future.set_result(function(replace(task, out=str(tmp_path / "there"))))
            return future

        def cancel(self, futures, force):
            assert not futures

    import distributed

    real = distributed.as_completed
    distributed.as_completed = lambda futures: iter(futures)
    try:
        (outcome,) = sweeps._do_on_dask([task], Client())
    finally:
        distributed.as_completed = real
    assert (
        outcome.state == "done"
        and json.loads((task.folder / "result.json").read_text()) == dict(value=16.0)
        and (task.folder / "toy.ipynb").exists()
    )


def test_nobody_at_the_address(tmp_path):
    with pytest.raises(OSError):
        sweeps._connect("tcp://127.0.0.1:9", seconds=1)


# the command


MAIN = "import sys; from hydramix_nb.tables import main; sys.exit(main())"


@pytest.fixture
def command(quick_python):
    "The command in a process of its own"

    def run(*arguments, **environment):
        return subprocess.run(
            [*quick_python, "-c", MAIN, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture
def main(capsys, monkeypatch):
    "The command in this process"
    monkeypatch.chdir(ROOT)
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        try:
            status = tables.main(list(arguments))
        except SystemExit as e:
            status = e.code
        return SimpleNamespace(returncode=status or 0, stdout=capsys.readouterr().out)

    yield run
    signal.signal(signal.SIGTERM, before)


TINY = [
    "table_1",
    "--profile",
    "tiny",
    "--datasets",
    "photos",
    "--samples_per_class",
    "2",
    "--device",
    "cpu",
]


def test_the_command_makes_a_table(tmp_path, main, command, quick_kernels):
    ask = [*TINY, "--methods", "Baseline,HydraMix", "--seeds", "0", "--out", str(tmp_path)]
    planned = main(*ask, "--dry_run")
    assert (
        planned.returncode == 0
        and "2 runs: 0 done, 2 left, 0 failed" in planned.stdout
        and "not known" in planned.stdout
    )
    assert not list(tmp_path.iterdir())
    done = command(*ask, "--workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(p.read_text()) for p in tmp_path.glob("classify/*/result.json")]
    assert {f["parameters"]["method"] for f in found} == {"Baseline", "HydraMix"}
    for f in found:
        assert (
            0 <= f["accuracy"] <= 100
            and f["seconds"] > 0
            and re.fullmatch("[0-9a-f]{12}", f["code"])
            and f["data"] == "photos"
        )
    assert len(list(tmp_path.glob("generators/*/generator.safetensors"))) == 1
    again = main(*ask)
    assert again.returncode == 0 and "2 runs: 2 done, 0 left" in again.stdout
    more = main(*ask[:-4], "--seeds", "0,1", "--out", str(tmp_path), "--dry_run")
    assert "4 runs: 2 done, 2 left" in more.stdout and re.search(
        r"cost: about \d+ s of computing", more.stdout
    )


@pytest.mark.parametrize(
    "wrong, says",
    [
        (["table_11"], "did you mean"),
        ([*TINY, "--methods", "Hydramix"], "did you mean 'HydraMix'"),
        ([*TINY, "--datasets", "cifar"], "data set"),
        ([*TINY, "--seeds", "a"], "list of int"),
        ([*TINY, "--profile", "tinny"], "did you mean 'tiny'"),
        ([*TINY, "--workers", "many"], "--workers 'many': 0 or more, or gpu"),
        ([*TINY, "--together", "0"], "--together '0': 1 or more"),
        ([*TINY, "--together", "2", "--workers", "2"], "on the GPUs of this machine alone"),
        ([*TINY, "--together", "2", "--scheduler", "tcp://a:1"], "on the GPUs of this machine"),
        ([*TINY, "--device", "gpu0"], "device 'gpu0': auto, cpu, cuda or cuda:N"),
        ([*TINY, "--device", "cuda:99"], "cuda:99"),
        ([*TINY, "--device", "cuda:1", "--workers", "2"], "CUDA_VISIBLE_DEVICES=1"),
        ([*TINY, "--datasets", "npz:not/there"], "--datasets npz:not/there: nothing at"),
        ([*TINY, "--datasets", "folder:not, there"], "data set 'there'"),
        ([*TINY, "--datasets", "npz:not/there", "--dry_run"], "nothing at"),
        ([*TINY, "--generator_settings", "{steps"], "as JSON"),
        ([*TINY, "--generator_settings", "3"], "as JSON"),
        ([*TINY, "--scheduler", "tcp://a:1", "--resources", "GPU"], "NAME=N"),
        (["table_1", "--detector_settings", "{}"], "--detector_settings"),
        ([*TINY, "--p_gen", "2"], "p_gen=2.0"),
        ([*TINY, "--minutes", "0"], "--minutes '0': a number above 0"),
        ([*TINY, "--minutes", "nine"], "--minutes 'nine'"),
        ([*TINY, "--classifier_settings", "{'step': 1}"], "classifier_settings"),
        ([*TINY, "--sedes", "1"], ""),
        (["figure_7", "--seeds", "0"], "figure_7 is no list of runs: papermill "),
    ],
    ids=lambda v: "",
)
def test_wrong_options_are_refused_with_status_2(wrong, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        tables.main([*wrong, "--out", str(tmp_path / "runs")])
    assert e.value.code == 2 and says in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("deeper", ["", "runs"])
def test_an_out_that_is_a_file_is_refused_with_status_2(deeper, tmp_path, capsys):
    file = tmp_path / "home.zip"
    file.write_text("")
    with pytest.raises(SystemExit) as e:
        tables.main([*TINY, "--out", str(file / deeper), "--dry_run"])
    assert e.value.code == 2
    assert f"{file} is a file, and a folder for runs is needed" in capsys.readouterr().err


def test_an_out_among_the_images_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "pets/cat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "pets")
    with pytest.raises(SystemExit) as e:
        tables.main([*TINY, "--datasets", "folder:.", "--out", "runs", "--dry_run"])
    assert e.value.code == 2
    assert "--out runs lies in folder:., among the images" in capsys.readouterr().err


def test_what_is_no_address_of_a_scheduler_is_said_in_a_line(tmp_path, capsys):
    assert tables.main([*TINY, "--scheduler", "nonsense", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.endswith("hydramix_sweep: there is no Dask scheduler at nonsense\n")
    assert "Traceback" not in said


@pytest.mark.parametrize("left, kept", [('{"cells": []', False), ('{"cells": []}', True)])
def test_a_notebook_that_a_full_disk_cut_short_is_not_kept(left, kept, tmp_path, monkeypatch):
    def execute_notebook(nb, path, *_, **__):
        Path(path).write_text(left)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.import_extra("papermill"), "execute_notebook", execute_notebook)
    empty = nbformat.writes(nbformat.v4.new_notebook())
    with pytest.raises(OSError, match="No space"):
        execution._execute_notebook(empty, tmp_path / "a.ipynb", {})
    assert [file.name for file in tmp_path.iterdir()] == ["a.ipynb"] * kept


def test_a_published_set_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HYDRAMIX_DATA", str(tmp_path))
    ask = ["table_1", "--datasets", "cifair10", "--seeds", "0", "--out", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as e:
        tables.main(ask)
    said = capsys.readouterr().err
    assert e.value.code == 2 and "--datasets cifair10: nothing at" in said
    assert "load_images('cifair10', download=True) fetches it" in said
    with pytest.raises(SystemExit):
        tables.main(["table_1", "--datasets", "npz:cifar10", "--out", str(tmp_path / "runs")])
    assert "cifar10; reproduce_a_table.ipynb makes it" in capsys.readouterr().err
    assert tables.main([*ask, "--dry_run"]) == 0
    assert "not there yet: cifair10" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["result.json", "error.json", "data.json", "code.json"])
def test_a_sweep_names_a_damaged_file_and_does_the_rest(name, tmp_path, no_kernels, capsys):
    "In words, with the way out; --retry does not remove what may be a result"
    toy(tmp_path)
    runs_of = [dict(x=3), dict(x=4), dict(x=5)]
    tasks = sweeps.plan(tmp_path / "toy.ipynb", runs_of, tmp_path / "runs")
    sweeps.sweep(tasks[:2], progress=False)
    damaged = tasks[0].folder / name
    if name == "error.json":
        (tasks[0].folder / "result.json").unlink()
    damaged.write_bytes(b'{"accuracy": 3\xff')
    tasks = sweeps.plan(tmp_path / "toy.ipynb", runs_of, tmp_path / "runs", retry=True)
    said, outcomes = sweeps.summary(tasks), sweeps.sweep(tasks, progress=False)
    assert [o.state for o in outcomes[1:]] == ["done", "done"]
    status = tables._report_end(outcomes, tmp_path)
    if name == "code.json":
        assert outcomes[0].state == "done" and "3 runs: 2 done, 1 left, 0 failed" in said
        return
    assert status == 1 and "3 runs: 1 done, 1 left, 1 failed" in said
    for text in (said, capsys.readouterr().out):
        assert f"{damaged} is not whole" in text and "remove it" in text
        assert "--retry" not in text
    damaged.unlink()
    assert [o.state for o in sweeps.sweep(tasks, progress=False)] == ["done"] * 3


def test_status_1_if_a_run_fails(tmp_path, command, quick_kernels):
    done = command(
        "table_1",
        "--profile",
        "tiny",
        "--datasets",
        "photos",
        "--samples_per_class",
        "100000",
        "--methods",
        "Baseline",
        "--seeds",
        "0",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    )
    assert (
        done.returncode == 1
        and "samples per class are asked for" in done.stdout
        and "0 of 1 runs are done" in done.stdout
    )


def test_help_helps(main):
    text = main("--help").stdout
    for word in (
        "--dry_run",
        "--workers",
        "--scheduler",
        "--retry",
        "--p_gen",
        "exit status",
        "examples:",
        "table_1",
    ):
        assert word in text, word
    one = " ".join(main("table_1", "--help").stdout.split())
    assert "--size" in one and "--p_gen" not in one and "default: 5,10,20,30,50,100" in one
    assert "0.5: the method's own" in " ".join(main("figure_5", "--help").stdout.split())
    assert "--detector_settings" in text and "--detector_settings" not in one


def test_a_sweep_in_pieces_gives_the_same_numbers(tmp_path, main, quick_kernels, monkeypatch):
    "Trainings find their time over after every step; a packed folder is reported as it is"
    steps = json.dumps(dict(steps=2))
    ask = [*TINY, "--methods", "HydraMix", "--seeds", "0", "--generator_settings", steps]
    ask += ["--classifier_settings", steps, "--out"]
    assert main(*ask, str(tmp_path / "alone")).returncode == 0
    monkeypatch.setattr(execution, "time", SimpleNamespace(time=lambda: 0.0))  # never too late here
    pieces = [main(*ask, str(tmp_path / "pieces"), "--minutes", ".001") for _ in range(3)]
    assert [piece.returncode for piece in pieces] == [3, 3, 0]
    assert "0 of 1 runs are done" in pieces[0].stdout and "1 are left" in pieces[0].stdout
    assert "1 runs: 0 done, 1 left, 0 failed" in pieces[1].stdout
    alone, cut = (
        [json.loads(file.read_text()) for file in (tmp_path / name).glob("classify/*/result.json")]
        for name in ("alone", "pieces")
    )
    times = dict.fromkeys(["seconds", "generator_seconds", "finished"], None)
    assert [a | times for a in alone] == [c | times for c in cut]
    digests = {
        weights_digest(gan.load(file).generator)
        for file in tmp_path.glob("*/generators/*/generator.safetensors")
    }
    assert len(digests) == 1
    said = archives._pack(tmp_path / "pieces", tmp_path / "home.zip", 1)
    assert "1 results, 1 generators" in said
    folder, packed = (results.measured(tmp_path / name, "") for name in ("pieces", "home.zip"))
    assert packed.equals(folder)
    with zipfile.ZipFile(tmp_path / "home.zip") as archive:
        archive.extractall(tmp_path / "home")
    half, exact = (
        gan.load(next((tmp_path / name).glob("generators/*/generator.safetensors")))
        for name in ("home", "pieces")
    )
    assert half.config == exact.config and half.history == exact.history
    for a, b in zip(half.generator.parameters(), exact.generator.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_mixer_that_trains_goes_on_where_its_run_was_stopped(
    tmp_path, in_pieces, monkeypatch, one_thread
):
    "With the same numbers; in the end no checkpoint is left"
    read = files._read_header  # every checkpoint says that it took 1000 seconds
    monkeypatch.setattr(files, "_read_header", lambda *of: read(*of) | dict(seconds="1000"))
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: plt.close("all"))
    cells = nbformat.read(ROOT / "nbs/experiments/classify.ipynb", 4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]

    def classify(name, method="GLICO"):
        space = {}
        exec(sources[0], space)
        space |= dict(samples_per_class=2, size=16, profile="tiny", device="cpu", method=method)
        space |= dict(out=str(tmp_path / name), classifier_settings=dict(steps=2))
        for source in sources[1:]:
            exec(source, space)
        return json.loads((tmp_path / name / "result.json").read_text())

    alone, (cut, calls) = classify("alone"), in_pieces(lambda: classify("pieces"))
    assert calls == 5, "four steps of GLICO, two of the classifier"
    times = dict.fromkeys(["seconds", "finished"])
    assert alone | times == cut | times
    assert 2000 < cut["seconds"] < 2999, "earlier calls' of GLICO and of the classifier"
    one, other = (
        read_tensors(tmp_path / name / "classifier.safetensors", "classifier")[0].values()
        for name in ("alone", "pieces")
    )
    assert all(map(torch.equal, one, other))
    classify("pool", "SuperMix")
    assert (tmp_path / "pool/mixer/teacher").is_dir()
    assert not list(tmp_path.rglob("checkpoint.safetensors"))


def test_runs_that_differ_in_the_mixer_alone_share_a_generator(tmp_path, monkeypatch, capsys):
    from hydramix_nb import gan, runs
    from hydramix_nb.data import load_images

    train, trainings = load_images("photos").few_shot(2, 0), []

    def fit(train, config, folder, progress, **_):
        return gan.Trained(gan.Generator(features=config.features), config, train.classes)

    def train_shared(train, config, *rest, trains=runs._train_shared):
        trainings.append(config)
        return trains(train, config, *rest)

    monkeypatch.setattr(runs, "_train_shared", train_shared)
    for settings in (dict(), dict(reduce="area"), dict(segment_size=32)):
        config = gan.profile("tiny", **settings)
        trained, _ = runs.shared_generator(train, config, tmp_path, fit=fit)
        assert trained.config == config
    runs.shared_generator(train, gan.profile("tiny", seed=1), tmp_path, fit=fit)
    assert trainings == [gan.profile("tiny"), gan.profile("tiny", seed=1)]
    monkeypatch.setattr(gan, "fit", fit)
    runs.shared_generator(train, gan.profile("tiny"), tmp_path)
    assert len(trainings) == 3, "what another function trains is another generator"
    assert not capsys.readouterr().out
    monkeypatch.setattr(runs, "_code_digest", lambda: "other")
    runs.shared_generator(train, gan.profile("tiny"), tmp_path)
    assert len(trainings) == 3 and "a generator of other code" in capsys.readouterr().out


@pytest.mark.parametrize("killed", ["before its report", "before its note"])
def test_a_shared_generator_killed_at_its_end_goes_on(killed, tmp_path, monkeypatch, capsys):
    from hydramix_nb.data import load_images

    train, config, wrote = load_images("toys", size=16).few_shot(2, 0), gan.profile("tiny"), []

    def finish(training, folder, finish=gan.Training.finish):
        finish(training, folder)
        wrote.append(folder)
        if killed == "before its report":
            raise KeyboardInterrupt

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gan.Training, "finish", finish)
    if killed == "before its note":
        monkeypatch.setattr(runs, "write_json", kill)
    with pytest.raises(KeyboardInterrupt):
        runs.shared_generator(train, config, tmp_path, progress=False)
    (place,) = (file.parent for file in tmp_path.glob("*/generator.safetensors"))
    monkeypatch.undo()
    monkeypatch.setattr(
        gan.Trained, "save", kill if killed == "before its note" else gan.Trained.save
    )
    _, seconds = runs.shared_generator(train, config, tmp_path, progress=False)
    assert seconds > 0 and {file.name for file in place.glob("generator.*")} == {
        "generator.json",
        "generator.safetensors",
    }
    assert not (place / "checkpoint.safetensors").exists()
    assert runs.shared_generator(train, config, tmp_path, progress=False)[1] == 0
    assert "of other code" not in capsys.readouterr().out
    (place / "generator.safetensors").unlink()  # a note alone is no generator
    monkeypatch.undo()
    assert runs.shared_generator(train, config, tmp_path, progress=False)[1] > 0


# what cannot be is refused by the plan


@pytest.mark.parametrize(
    "experiment, axes, message",
    [
        ("table_1", dict(seeds=[-1]), "seed=-1: from 0"),
        ("table_1", dict(size=[-32]), "size=-32"),
        ("table_1", dict(samples_per_class=[1]), "mixes images of a class, 2 or more"),
        ("table_1", dict(image_size=[30]), "generator_settings: image_size=30: a multiple of 4"),
        ("table_1", dict(classifier_settings=dict(steps=2.5)), "steps=2.5: int or None is needed"),
        ("table_1", dict(classifier_settings=dict(lr="1e-3")), "lr='1e-3': float is needed"),
        ("table_1", dict(classifier_settings=dict(augment=1)), "augment=1: bool is needed"),
        ("table_1", dict(generator_settings=dict(betas=0.5)), "betas=0.5: tuple is needed"),
        ("table_1", dict(generator_settings=dict(betas=[0.5, None])), "tuple is needed"),
        ("table_1", dict(generator_settings=dict(lr=float("nan"))), "lr=nan: float is needed"),
        ("table_4", dict(dino_settings=dict(stps=1)), "dino_settings: DINO has no setting 'stps'"),
        ("table_4", dict(dino_settings=dict(momentum="a")), "momentum='a': float is needed"),
        ("table_4", dict(methods=["HydraMix"]), "method 'HydraMix'"),
        ("table_8", dict(detector_settings=dict(steps="9")), "steps='9': int or None is needed"),
        ("table_8", dict(datasets=["cutout"]), "did you mean 'cutouts'"),
        ("table_8", dict(generator_settings=dict(image_size=33)), "image_size=33"),
        ("table_1", dict(methods=["AutoAugment"], auto_augment=["TrivialAugment"]), "a second one"),
        ("table_1", dict(methods=["MixUpN"], n_images=[1]), "n_images=1: MixUpN mixes 2 or more"),
        ("table_1", dict(methods=["GLICO"], size=[30]), "a multiple of 4"),
        ("table_1", dict(methods=["Scattering"], size=[30]), "a multiple of 4"),
        ("table_1", dict(datasets=["folder:"]), "data set 'folder:' needs a path"),
        (
            "table_1",
            dict(classifier_settings=dict(network="x")),
            "classifier_settings: network 'x'",
        ),
        (
            "table_1",
            dict(methods=["ChimeraMix+Seg"], generator_settings=dict(n_images=3)),
            "exactly 2 with 'segments'",
        ),
        (
            "table_1",
            dict(methods=["HydraMix"], generator_settings=dict(mixing="grid")),
            "mixing='grid': HydraMix has its own",
        ),
        ("table_2", dict(auto_augment=["Trivial"]), "did you mean 'TrivialAugment'"),
        (
            "table_4",
            dict(methods=["DINO+HydraMix"], samples_per_class=[1]),
            r"samples_per_class=1: DINO\+HydraMix mixes images of a class",
        ),
        ("table_4", dict(dino_settings=dict(p_gen=0.3)), "dino_settings: it holds p_gen"),
        ("table_4", dict(dino_settings=dict(network="x")), "dino_settings: network 'x'"),
        ("table_8", dict(detector_settings=dict(network="wrn-16-8")), "network 'wrn-16-8'"),
        ("table_8", dict(scene_size=[30]), "scene_size=30: a generator takes a multiple of 4"),
        ("table_8", dict(image_size=[512]), "scene_size=128: windows of 512 pixels do not fit"),
    ],
)
def test_values_that_cannot_be_are_refused_by_the_plan(experiment, axes, message):
    with pytest.raises(ValueError, match=message):
        tables.grid(experiment, **axes)


@pytest.mark.parametrize(
    "notebook, wrong, message",
    [
        ("classify", dict(method="TrivialAugment", auto_augment="AutoAugment"), "a second one"),
        ("pretrain", dict(samples_per_class=1), "mixes images of a class, 2 or more"),
        ("detect", dict(scene_size=30), "a generator takes a multiple of 4"),
    ],
)
def test_the_run_itself_asks_the_same_check_before_any_other_work(notebook, wrong, message):
    path = sweeps.find_notebook(notebook)
    cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    asks = next(i for i, source in enumerate(cells) if "_check_run(" in source)
    work = [line for cell in cells[1:asks] for line in cell.splitlines() if "import" not in line]
    assert not work, "something is done before"
    known = {name: default for name, (_, default, _) in runs.notebook_parameters(path).items()}
    with pytest.raises(ValueError, match=message):
        exec("\n".join(cells[1 : asks + 1]), known | wrong)


def test_settings_as_json_and_numpy_have_them_are_taken():
    settings = json.loads('{"steps": 3, "lr": 1, "betas": [0, 0.9], "milestones": []}')
    assert tables.grid("table_1", generator_settings=settings, methods=["HydraMix"], seeds=[0])
    import numpy as np

    from hydramix_nb import classifier

    config = classifier.profile("tiny", steps=np.int64(3), lr=np.float32(0.1), augment=False)
    assert config.steps == 3 and config.augment is False


def test_an_unreadable_folder_is_an_error_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    refuse = lambda *a: (_ for _ in ()).throw(PermissionError(13, "Permission denied", "pics"))
    monkeypatch.setattr(tables, "_find_data", refuse)
    options = ["--samples_per_class", "2", "--datasets", "folder:pics", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        tables.main(["table_1", *options, "--dry_run"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip() == (
        "hydramix_sweep: error: [Errno 13] Permission denied: 'pics'"
    )
