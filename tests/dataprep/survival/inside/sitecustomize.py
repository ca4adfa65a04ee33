"""What happens inside the processes of a run under test; Python imports this file where its folder is on PYTHONPATH.

SURVIVAL_LOG      a file: a line for every task that a process begins
SURVIVAL_GATE     a file: no task is begun before it is there
SURVIVAL_MEMORY   "SECONDS limit": so long after its first task begins, one worker gets no more memory from the system;
                  "0 error": its first task asks for more memory than there is;
                  "SECONDS kill": it takes memory until it is killed, as the kernel does it
SURVIVAL_DISK     "slow": files are written a few kilobytes at a time, so that a kill comes in between
SURVIVAL_LOCKS    "none": the file system has no flock
SURVIVAL_BUG      "yes": the compiler has a bug
SURVIVAL_WORKERS  a file that each worker process makes, and then takes a second before it does anything
SURVIVAL_COUNTER  "1", "2": that worker dies with the lock of a shared counter, which the others need then
"""

import builtins
import errno
import fcntl
import importlib.machinery
import io
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time

LOG, GATE, MEMORY, COUNTER = (os.environ.get(f"SURVIVAL_{name}", "") for name in ("LOG", "GATE", "MEMORY", "COUNTER"))


class Finder:
    """Finds the compiler's module as usual, and changes it when it is loaded."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "dataprep.compiler":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.Compiler.run = watched(module.Compiler.run)

        spec.loader.exec_module = exec_module
        return spec


def watched(run):
    def begin(self, task, *more):
        if LOG:
            with open(LOG, "a") as log:
                log.write(f"{os.getpid()} {task.index} {task.first.file}:{task.first.line}\n")
        while GATE and not os.path.exists(GATE):
            time.sleep(0.01)
        if MEMORY and multiprocessing.parent_process() is not None and first("memory"):
            if MEMORY.endswith("error"):
                resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
                bytearray(8 << 30)
            threading.Thread(target=run_out_of_memory, args=MEMORY.split(), daemon=True).start()
        if os.environ.get("SURVIVAL_BUG"):
            raise ZeroDivisionError("division by zero")
        return run(self, task, *more)

    return begin


def first(what):
    """Return whether no other process of this run came here before."""
    try:
        os.close(os.open(f"{LOG}.{what}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def run_out_of_memory(seconds, how):
    time.sleep(float(seconds))
    if how == "limit":
        with open("/proc/self/statm") as file:
            in_use = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use, in_use))
    taken = []
    for size in (1 << 20, 1 << 12):
        try:
            while sum(map(len, taken)) < 300 << 20:
                taken.append(bytearray(size))
        except MemoryError:
            pass
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


plain_open = open


class SlowFile(io.FileIO):
    """A file whose disk takes its time."""

    def write(self, content):
        time.sleep(0.002)
        return super().write(memoryview(content)[:4096])


def slow_open(file, mode="r", *arguments, **more):
    if mode != "wb" or not isinstance(file, (str, os.PathLike)):  # a pipe has a number
        return plain_open(file, mode, *arguments, **more)
    return io.BufferedWriter(SlowFile(file, "w"))


def no_flock(descriptor, kind):
    raise OSError(errno.ENOSYS, "Function not implemented")


def deadly(get_lock):
    def get(self):
        lock = get_lock(self)
        if multiprocessing.parent_process() is None:
            return lock
        if multiprocessing.current_process().name == f"SpawnProcess-{COUNTER}":
            lock.acquire()
            first("counter")
            os.kill(os.getpid(), signal.SIGKILL)
        while not os.path.exists(f"{LOG}.counter"):
            time.sleep(0.01)
        return lock

    return get


if "SURVIVAL_WORKERS" in os.environ and any("spawn_main" in word for word in sys.orig_argv):
    os.close(os.open(os.environ["SURVIVAL_WORKERS"], os.O_CREAT))
    time.sleep(1)
if LOG or GATE or os.environ.get("SURVIVAL_BUG"):
    sys.meta_path.insert(0, Finder)
if os.environ.get("SURVIVAL_DISK") == "slow":
    builtins.open = slow_open
if os.environ.get("SURVIVAL_LOCKS") == "none":
    fcntl.flock = no_flock
if COUNTER:
    from multiprocessing import sharedctypes

    sharedctypes.SynchronizedBase.get_lock = deadly(sharedctypes.SynchronizedBase.get_lock)
