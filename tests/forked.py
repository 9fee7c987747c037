"""Jupyter kernels and Python processes that start in a tenth of a second.

A new process computes for four to nine seconds until torch, matplotlib and papermill are imported,
which this suite would do 200 times. Here one process imports them, and forks for each of the
others. Nothing of hydramix_nb is imported before the fork, and they share no state.

    python tests/forked.py SOCKET                  # the process that forks, until its input ends
    python tests/forked.py SOCKET CONNECTION ...   # in the place of a kernel: forks one there
    python tests/forked.py SOCKET -c CODE ...      # in the place of python -c CODE ...

The second one is what jupyter_client starts. It hands signals on to what was forked, takes it along
when it is killed, and ends as it ends. The fixtures `quick_kernels` and `quick_python` of
conftest.py set all this up."""

import json
import os
import select
import signal
import socket
import sys
import threading
import traceback

PRELOADED = [
    "numpy",
    "torch",
    "torch._dynamo",  # the first step of an optimizer imports it
    "torchvision.transforms.v2",
    "matplotlib.pyplot",
    "skimage.segmentation",
    "papermill",
    "ipykernel.kernelapp",
]


def become(connection, asked, streams):
    "After the fork: make this process what one would be that started with these arguments"
    os.setsid()
    for stream, target in zip(streams, (1, 2)):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    added = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [folder for folder in added if folder and folder not in sys.path]
    sys.argv = asked["arguments"]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    import numpy

    numpy.random.seed()  # Python's own generator does so by itself

    def end_with_stand_in():
        if not connection.recv(1):
            os.kill(os.getpid(), signal.SIGKILL)

    connection.sendall(b"%d\n" % os.getpid())
    threading.Thread(target=end_with_stand_in, daemon=True).start()


def fork_on_request(place):
    "Fork for every connection; returns that connection in a kernel, None at the end"
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # a kernel ends when this process is gone
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as ipykernel does
    for module in PRELOADED:
        __import__(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for kernels
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX)
    server.bind(place)
    server.listen(64)
    while True:
        ready, _, _ = select.select([server, 0], [], [])
        if 0 in ready:
            return None
        connection, _ = server.accept()
        with connection:
            message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 2)
            while not message.endswith(b"\n"):
                message += connection.recv(1 << 20)
            if os.fork() == 0:
                server.close()
                connection = connection.dup()
                become(connection, json.loads(message), streams)
                return connection
            for stream in streams:
                os.close(stream)


def run():
    "What was asked for; its exit status"
    try:
        if sys.argv[0] == "-c":
            sys.path.insert(0, "")
            exec(compile(sys.argv.pop(1), "<string>", "exec"), dict(__name__="__main__"))
        else:
            from ipykernel import kernelapp

            sys.argv[:0] = ["ipykernel_launcher", "-f"]
            kernelapp.launch_new_instance()
    except SystemExit as e:
        return int(e.code or 0)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
    return 0


def serve(place):
    connection = fork_on_request(place)
    if connection:
        connection.sendall(b"%d\n" % run())


def stand_in(place, arguments):
    "Ask for a process, and live as long as it does"
    asked = dict(cwd=os.getcwd(), environment=dict(os.environ), arguments=arguments)
    parent = os.getppid()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(place)
    message = json.dumps(asked).encode() + b"\n"
    sent = socket.send_fds(connection, [message], [1, 2])
    connection.sendall(message[sent:])
    answers = connection.makefile("rb")
    kernel = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(kernel, number))
    while not select.select([connection], [], [], 1)[0]:
        if os.getppid() != parent:
            return
    status = answers.readline()
    if not status:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(int(status))


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        stand_in(sys.argv[1], sys.argv[2:])
