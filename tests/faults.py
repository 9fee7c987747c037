"""A fault campaign, seeded: what is left after each fault, continued, is an undisturbed run's.

    python tests/faults.py --kills 20        # as CI does; --kills 200 takes a while

kill -9 hits trainings of every method, and sweeps: the process that plans, its whole group, or the
worker at a run. Then come a disk that runs full, a folder that cannot be written, two sweeps at
once and a clock that jumps back. Results are compared to the last bit, weights included.

Processes are forked from this one, so that a fault costs the training and not the imports; a
forked worker takes the place of a Jupyter kernel (tests/test_runs.py kills real ones). It lives on
for half a second when its sweep is killed, as a kernel does."""

import argparse
import contextlib
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "agg"

import matplotlib.pyplot as plt
import nbformat
import torch
import torch._dynamo  # the first step of an optimizer takes seconds to import it

from hydramix_nb import baselines, classifier, execution, gan, sweeps
from hydramix_nb.data import load_images
from hydramix_nb.files import read_json, read_tensors, tensor_digest, weights_digest, write_json

WITHOUT = {"DiffuseMix": "needs images that a diffusion model has edited"}
METHODS = [name for name in baselines.METHODS if name not in WITHOUT]
FEW = ["MixUp", "HydraMix"]  # the sweep of a short campaign
TIMES = ("seconds", "generator_seconds", "finished")
failures = []


def check(condition, text):
    if not condition:
        failures.append(text)
        print(f"FAILED: {text}", flush=True)


# processes


def work_and_exit(work):
    "Do work in a process that was forked, and end it: status 1 where the work fails"
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def forked(work, log):
    "Do work in a process of its own, at the head of its own group; its id"
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def logged():
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        work()

    work_and_exit(logged)


def stalled():
    "Seconds so far in which some process waited for a core; 0 where the system does not tell"
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/pressure/cpu").read_text().split("total=")[1].split()[0]) / 1e6
    return 0


def ended(pid, seconds=300):
    "Status of a process that ends by itself; one that hangs, given cores, is a failure"
    begun, before = time.monotonic(), stalled()
    waited = 0
    while waited - (stalled() - before) < seconds and waited < 12 * seconds:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
        waited = time.monotonic() - begun
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    check(False, f"process {pid} hangs")
    return -1


def children(pid):
    with contextlib.suppress(OSError):
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    return []


def killed(work, log, delay, victim="process"):
    "Whether the victim was killed after a delay, before the work had ended"
    pid = forked(work, log)
    limit = time.monotonic() + delay
    while time.monotonic() < limit:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.005)
    if victim == "worker":
        there = children(pid)
        if there:
            os.kill(there[0], signal.SIGKILL)
        check(ended(pid) == 0, f"a sweep ends well without one of its workers, see {log}")
        return bool(there)
    (os.killpg if victim == "group" else os.kill)(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


# what is disturbed


def train_all(method, folder):
    "Generator and classifier of a method, with a checkpoint after every step"
    often = dict(checkpoint_minutes=0, progress=False)
    trained = None
    if method in baselines.GENERATORS:
        config = gan.profile("tiny", 32, **baselines.GENERATORS[method])
        trained = gan.fit(FEW_IMAGES, config, folder=folder / "generator", **often)
    built = baselines.build(
        method, FEW_IMAGES, trained=trained, profile="tiny", cache=folder / "maps", progress=False
    )
    config = classifier.profile("tiny", 32)
    result = classifier.fit(
        FEW_IMAGES, TEST_IMAGES, built, config, folder=folder / "classifier", **often
    )
    found = dict(accuracy=result.accuracy, weights=weights_digest(result.model))
    if trained:
        found["generator"] = weights_digest(trained.generator)
    write_json(folder / "found.json", found)


class DeadKernelError(RuntimeError):
    "As a worker's end is called where it is a Jupyter kernel"


def run_cells(nb, parameters, sweep):
    "Run a notebook's cells in this process, as a kernel does"
    for number in os.listdir("/proc/self/fd"):  # a kernel does not inherit the lock
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").endswith(".lock"):
                os.close(int(number))
    threading.Thread(target=end_with, args=[sweep], daemon=True).start()
    space = dict(__name__="__main__")
    for cell in nb.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, cell.id, "exec"), space)
            if "parameters" in cell.metadata.get("tags", []):
                space |= parameters
    plt.close("all")


def execute_forked(notebook, output, parameters, cwd=None, deadline=None):
    "In the place of `execution._execute_notebook`: the cells run in a forked process"
    nb = nbformat.reads(notebook, 4)
    sweep = os.getpid()
    pid = os.fork()
    if pid == 0:
        work_and_exit(functools.partial(run_cells, nb, parameters, sweep))
    status = os.waitpid(pid, 0)[1]
    Path(output).write_text(notebook)
    if os.WIFSIGNALED(status):
        raise DeadKernelError("Kernel died")
    if status:
        raise RuntimeError("the notebook failed")


def end_with(parent):
    "A worker whose sweep is gone goes half a second later"
    while os.getppid() == parent:
        time.sleep(0.1)
    time.sleep(0.5)
    os._exit(9)


def plan(methods, out, **more):
    common = dict(dataset="photos", samples_per_class=2, profile="tiny")
    runs = [dict(common, method=method) for method in methods]
    return sweeps.plan("classify", runs, out, device="cpu", **more)


def sweep(methods, out, **more):
    execution._execute_notebook = execute_forked
    outcomes = sweeps.sweep(plan(methods, out, **more), progress=False)
    states = [o.state for o in outcomes]
    assert set(states) == {"done"}, [o.error for o in outcomes if o.state != "done"]


def table(out):
    "Everything that a sweep's results say but times, and the weights"
    rows = {}
    for file in sorted(out.glob("classify/*/result.json")):
        row = {k: v for k, v in read_json(file).items() if k not in TIMES}
        weights, _ = read_tensors(file.parent / "classifier.safetensors", "classifier")
        row["weights"] = tensor_digest(weights.values(), *weights)
        rows[file.parent.name] = row
    return rows


# faults


def kill_trainings(kills, rng, work):
    "kill -9 of trainings; how many hit"
    methods = METHODS if kills >= len(METHODS) else rng.sample(METHODS, kills)
    hits = 0
    for position, method in enumerate(methods):
        log, folder = work / "log.txt", work / f"training{position}"
        started = time.monotonic()
        check(
            ended(forked(functools.partial(train_all, method, work / "calm" / method), log)) == 0,
            method,
        )
        seconds = time.monotonic() - started
        for _ in range(kills // len(methods) + (position < kills % len(methods))):
            delay = rng.uniform(0, seconds)
            while not killed(functools.partial(train_all, method, folder), log, delay):
                shutil.rmtree(folder)
                delay = rng.uniform(0, 0.8 * seconds)
            hits += 1
        check(
            ended(forked(functools.partial(train_all, method, folder), log)) == 0,
            f"{method}, see {log}",
        )
        same = read_json(folder / "found.json") == read_json(work / "calm" / method / "found.json")
        check(same, f"{method}: other weights after kill -9")
        print(f"{hits} trainings killed, the last of {method}", flush=True)
    return hits


def kill_sweeps(kills, rng, work, methods, calm, seconds):
    "kill -9 of sweeps, their groups and their workers; how many hit of each"
    hits, log, campaign = dict(process=0, group=0, worker=0), work / "log.txt", 0
    while sum(hits.values()) < kills:
        out, campaign = work / f"sweep{campaign}", campaign + 1
        while sum(hits.values()) < kills:
            victim = ("process", "group", "worker")[sum(hits.values()) % 3]
            delay = rng.uniform(0, seconds / 3)
            hits[victim] += killed(functools.partial(sweep, methods, out), log, delay, victim)
            if len(table(out)) == len(methods):
                break
        check(
            ended(forked(functools.partial(sweep, methods, out), log)) == 0,
            f"a sweep ends, see {log}",
        )
        check(table(out) == calm, f"sweep {campaign}: another table after kill -9")
        print(f"{campaign} sweeps killed {sum(hits.values())} times", flush=True)
        check(not list(out.glob("classify/*/error.json")), "a kill is taken for a failure")
    return hits


@contextlib.contextmanager
def small_disk(work):
    "A file system of 3 MB; None where none can be mounted"
    place = work / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def fill_disk(work, calm, method):
    "A disk that runs full, then one that cannot be written, at every stage of a training"
    with small_disk(work) as place:
        if place is None:
            return "skipped: only root can mount a small file system here"
        log, folder, ends = work / "full.txt", place / "run", 0
        for free in (0, 40, 120, 300, 700):  # kB
            ballast = place / "ballast"
            left = shutil.disk_usage(place).free - 1024 * free
            ballast.write_bytes(b"x" * max(left, 0))
            ends += ended(forked(functools.partial(train_all, method, folder), log)) == 0
            ballast.unlink()
            for file in folder.rglob("*.safetensors"):
                with open(file, "rb") as f:
                    size = int.from_bytes(f.read(8), "little")
                check(0 < size < file.stat().st_size, f"half of {file} after a full disk")
        check("No space left" in log.read_text(), "a full disk is an error that says so")
        check(ends < 5, "the disk was never full")
        check(ended(forked(functools.partial(train_all, method, folder), log)) == 0, f"see {log}")
        check(read_json(folder / "found.json") == calm, "other weights after a full disk")
        shutil.rmtree(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        check(
            ended(forked(functools.partial(train_all, method, folder), log)) != 0,
            "written to read-only",
        )
        check(ended(forked(lambda: sweep([method], place / "out"), log)) != 0, "swept read-only")
        check("Read-only file system" in log.read_text(), "read-only is an error that says so")
        return "ran full five times, then was read-only"


def two_at_once(work, methods, calm):
    out, log = work / "both", work / "both.txt"
    both = [forked(functools.partial(sweep, methods, out), log) for _ in range(2)]
    check([ended(pid) for pid in both] == [0, 0], f"two sweeps at once, see {log}")
    check(table(out) == calm, "another table after two sweeps at once")


def clock_back(work, methods, calm):
    "A clock that jumps back an hour: the sweep goes on, and --retry does a failed run again"
    out, log, now = work / "clock", work / "clock.txt", time.time

    def jump():
        begun = now()
        time.time = lambda: now() - 3600 * (now() > begun + 0.3)
        sweep(methods[1:], out)

    check(ended(forked(jump, log)) == 0, f"a clock that jumps back, see {log}")
    (task,) = plan(methods[:1], out)
    write_json(task.folder / "error.json", dict(error="E", time=now() + 3600, traceback=""))
    check(plan(methods[:1], out)[0].outcome().state == "failed", "a failure of the future counts")
    check(ended(forked(lambda: sweep(methods[:1], out, retry=True), log)) == 0, f"retry, see {log}")
    check(table(out) == calm, "another table after a clock that jumped back")


def campaign(kills, seed, work):
    rng, started = random.Random(seed), time.monotonic()
    methods = FEW if kills < 100 else METHODS
    say = lambda text: print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)
    begun, log = time.monotonic(), work / "log.txt"
    check(ended(forked(lambda: sweep(methods, work / "calm-out"), log), 1800) == 0, f"see {log}")
    calm, seconds = table(work / "calm-out"), time.monotonic() - begun
    check(len(calm) == len(methods), "the undisturbed sweep has every run")
    say(f"undisturbed sweep of {len(methods)} methods")
    say(f"{kill_trainings(kills - kills // 2, rng, work)} trainings killed")
    say(f"sweeps: {kill_sweeps(kills // 2, rng, work, methods, calm, seconds)} killed")
    check(ended(forked(lambda: train_all("HydraMix", work / "calm/HydraMix"), log)) == 0, "calm")
    say("disk: " + fill_disk(work, read_json(work / "calm/HydraMix/found.json"), "HydraMix"))
    few = [task.id for task in plan(FEW, work / "calm-out")]
    calm = {id: calm[id] for id in few}
    two_at_once(work, FEW, calm)
    say("two sweeps at once")
    clock_back(work, FEW, calm)
    say("a clock that jumps back")
    for name, reason in WITHOUT.items():
        say(f"not tried: {name}, which {reason}")


def main():
    global FEW_IMAGES, TEST_IMAGES
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    FEW_IMAGES = load_images("photos").few_shot(2, 0)
    TEST_IMAGES = load_images("photos", "test")[::25]
    with tempfile.TemporaryDirectory(prefix="faults-") as work:
        campaign(options.kills, options.seed, Path(work))
        if failures:
            for log in Path(work).glob("*.txt"):
                print(f"--- {log.name}\n{log.read_text()[-3000:]}")
    print(f"{len(failures)} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
