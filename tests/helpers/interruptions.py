"""A program that interrupts a training command at each of its file accesses, and then resumes the run."""

EVERY_INSTANT = """
import json, os, resource, signal, sys
from pathlib import Path
import safetensors
from lpfamily.report import drawing
from lpfamily.train import main

drawing.rendered = lambda *arguments: {"png": bytes(99)}  # it takes the most time
how, *flags = sys.argv[1:]

def child(act, *arguments):
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(write, 2)
        os._exit(act(*arguments))
    os.close(write)
    with os.fdopen(read) as said:
        return *said.read().splitlines(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def disturb(path, mode):
    if how == "killed before":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "killed in":  # the kernel writes what is allowed, and kills; Python would go on with an error
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    size = 40 + (path.stat().st_size if "a" in mode and path.exists() else 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def disturbed(instant, folder):
    left = instant
    def hook(event, arguments):
        nonlocal left
        paths = [str(argument) for argument in arguments[:2]]
        # the event of open has a mode; that of os.open, which open calls, has none
        writes = event == "open" and arguments[1] and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        touches = writes or (event in ("os.rename", "os.mkdir") and how == "killed before")
        if touches and any(path.startswith(folder) for path in paths):
            left -= 1
            if left == -1:
                path = Path(paths[-1 if event == "os.rename" else 0])
                os.write(2, f"{event} {path.name}\\n".encode())
                disturb(path, arguments[1])
    sys.addaudithook(hook)
    return main([*flags, "--out", folder])

def epoch_of(checkpoint):
    if not checkpoint.exists():
        return None
    with safetensors.safe_open(checkpoint, framework="numpy") as file:
        return json.loads(file.metadata()["lpfamily"])["epoch"]

main([*flags, "--out", "undisturbed"])  # its children inherit what it imports and caches
instant = 0
while len(outcome := child(disturbed, instant, folder := str(Path(f"at-{instant}").resolve()))) > 1:
    kept = epoch_of(Path(folder, "checkpoint.safetensors"))
    begun = Path(folder, "config.json").exists()
    again = child(main, ["--resume", folder, "--quiet"] if begun else [*flags, "--out", folder])
    print(json.dumps([folder, kept, outcome, again]), flush=True)
    instant += 1
"""
