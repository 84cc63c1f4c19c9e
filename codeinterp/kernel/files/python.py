"""Starts ipykernel for Caisson's code interpreter and adds to it what the
interpreter promises: displays with data and charts in them, environment
variables per cell, output that is never lost and never waits in heaps.

usage: python3 python.py CONNECTION_FILE
"""

import json
import math
import os
import sys
import threading

# What a cell may have waiting before it is held up.
PIECE = 1 << 20
# Longest table that is sent as data besides its text and HTML.
MAX_CELLS = 500_000


def limit_memory():
    """A cell that asks for more than the sandbox has gets a MemoryError, where
    without this all of the sandbox would end."""
    import resource

    room = int(os.environ.pop("CAISSON_KERNEL_MEMORY", "0"))
    if room <= 0:
        return
    with open("/proc/self/statm") as f:
        used = int(f.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))


# --- output ------------------------------------------------------------------


class Pace:
    """Makes a stream of ipykernel send pieces of bounded size, soon, and wait
    for its reader when it has fallen behind, but not at every flush: a flush
    waits for another thread, and loggers flush after every line."""

    def __init__(self, stream):
        self.stream = stream
        self.really_write, self.really_flush = stream.write, stream.flush
        self.waiting = 0
        self.in_cell = False
        stream.flush_interval = 0.02
        stream.flush_timeout = 24 * 3600
        # Output that one thread takes is queued before another takes what follows.
        self.taking, take = threading.Lock(), stream._flush
        os.register_at_fork(after_in_child=self.forked)

        def take_in_order():
            with self.taking:
                take()

        stream._flush = take_in_order
        stream.write, stream.flush = self.write, self.flush

    def forked(self):
        self.taking = threading.Lock()  # the thread that held it is not here

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text)}")
        for start in range(0, len(text), PIECE):
            piece = text if len(text) <= PIECE else text[start : start + PIECE]
            self.really_write(piece)
            self.waiting += len(piece)
            if self.waiting >= PIECE:
                self.sync()
        return len(text)

    def flush(self):
        if not self.stream._is_master_process():
            self.really_flush()
        elif not self.in_cell:
            self.push()
        # Else what was written is on its way within the interval.

    def push(self):
        """Queues what was written before whatever is sent next."""
        if self.waiting:
            self.waiting = 0
            self.stream._flush()

    def sync(self):
        """Waits until the reader has taken what was written."""
        self.waiting = 0
        self.really_flush()


def keep_output(app):
    """A publishing socket drops what its reader does not take in time; this one
    waits."""
    import zmq

    socket = app.iopub_thread.socket

    def configure():
        socket.setsockopt(zmq.SNDHWM, 16)
        socket.setsockopt(zmq.XPUB_NODROP, 1)

    app.iopub_thread.schedule(configure)


# --- variables ---------------------------------------------------------------


class Variables:
    """Sets the variables that come with a cell, and puts back what they were."""

    def __init__(self, shell):
        self.shell = shell
        self.before = {}

    def pre_execute(self):
        self.restore()
        parent = getattr(self.shell, "parent_header", None) or {}
        told = (parent.get("metadata") or {}).get("caisson") or {}
        os.environ.update(told.get("globals") or {})
        for name, value in (told.get("env") or {}).items():
            self.before[name] = os.environ.get(name)
            os.environ[name] = value

    def restore(self):
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self.before = {}


# --- commands ----------------------------------------------------------------


def run_command(shell, line):
    """What !command runs: its output goes where the cell's own goes, and is
    there before the cell is done. There is no terminal to wait for input."""
    import codecs
    import selectors
    import subprocess

    child = subprocess.Popen(
        shell.var_expand(line, depth=2),
        shell=True,
        executable=os.environ.get("SHELL") or "/bin/sh",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    decode = codecs.getincrementaldecoder("utf-8")
    with selectors.DefaultSelector() as ready:
        ready.register(child.stdout, selectors.EVENT_READ, (sys.stdout, decode("replace")))
        ready.register(child.stderr, selectors.EVENT_READ, (sys.stderr, decode("replace")))
        try:
            while ready.get_map():
                found = ready.select(0.2)
                if not found and child.poll() is not None:
                    break  # what it left running may keep the pipes
                for key, _ in found:
                    stream, decoder = key.data
                    piece = os.read(key.fd, 1 << 16)
                    stream.write(decoder.decode(piece, not piece))
                    if not piece:
                        ready.unregister(key.fileobj)
            code = child.wait()
        except KeyboardInterrupt:
            # It got the same signal.
            try:
                code = child.wait(2)
            except subprocess.TimeoutExpired:
                child.kill()
                code = child.wait()
            raise
        finally:
            child.stdout.close()
            child.stderr.close()
            shell.user_ns["_exit_code"] = child.returncode


# --- data --------------------------------------------------------------------


def plain(value):
    """value as JSON can carry it."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if hasattr(value, "isoformat"):
        try:
            text = value.isoformat()
            return None if text == "NaT" else text
        except Exception:
            return None
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if hasattr(value, "item"):
        return plain(value.item())
    return str(value)


def frame_data(frame):
    """A table as {column: [values]}."""
    if frame.size > MAX_CELLS:
        return None
    return {str(name): [plain(v) for v in frame.iloc[:, i].tolist()] for i, name in enumerate(frame.columns)}


def json_data(value):
    """A list or dict as it is, when JSON knows all that is in it."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return None if len(text) > PIECE * 4 else json.loads(text)


# --- shell -------------------------------------------------------------------


def formatters(shell):
    from IPython.core.formatters import BaseFormatter, JSONFormatter
    from traitlets import ObjectName, Unicode

    class Data(BaseFormatter):
        format_type = Unicode("e2b/data")
        print_method = ObjectName("_repr_e2b_data_")
        _return_type = dict

    class Chart(BaseFormatter):
        format_type = Unicode("e2b/chart")
        print_method = ObjectName("_repr_e2b_chart_")
        _return_type = dict

        def __call__(self, obj):
            # matplotlib's integration takes printers of figures off every formatter.
            if any((t.__module__, t.__name__) == ("matplotlib.figure", "Figure") for t in type(obj).__mro__):
                return figure_chart(obj)
            return super().__call__(obj)

    known = shell.display_formatter
    data, chart = Data(parent=known), Chart(parent=known)
    known.formatters["e2b/data"] = data
    known.formatters["e2b/chart"] = chart
    for mime in ("e2b/data", "e2b/chart"):
        if mime not in known.active_types:
            known.active_types = [*known.active_types, mime]
    data.for_type_by_name("pandas.core.frame", "DataFrame", frame_data)
    as_json: JSONFormatter = known.formatters["application/json"]
    for kind in (dict, list):
        as_json.for_type(kind, json_data)
    text = known.formatters["text/plain"]
    text.max_seq_length = 0


def figure_chart(figure):
    import caisson_charts

    try:
        return caisson_charts.chart(figure)
    except Exception as error:
        print(f"no chart data: {error}", file=sys.__stderr__)
        return None  # the picture is there all the same


def show_images():
    """Images show themselves when they are saved or shown."""
    import importlib.abc
    import importlib.machinery

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "PIL.Image":
                return None
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            if spec is None:
                return None
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                adapt(module)

            spec.loader.exec_module = exec_module
            return spec

    def adapt(module):
        from IPython.display import display

        save = module.Image.save
        inside = False

        def saved(self, fp, format=None, **params):
            nonlocal inside
            save(self, fp, format=format, **params)
            # A picture that is made for a display is saved too, to memory.
            if not inside and isinstance(fp, (str, os.PathLike)):
                inside = True
                try:
                    display(self)
                finally:
                    inside = False

        def show(self, title=None, **params):
            display(self)

        module.Image.save, module.Image.show = saved, show

    sys.meta_path.insert(0, Finder())


def leave_out(*names):
    """Modules that ipykernel loads for editors, and can do without: completion
    and a debugger. Code that imports them later gets them."""
    for name in names:
        sys.modules[name] = None


def main():
    leave_out("debugpy", "jedi")
    from ipykernel.kernelapp import IPKernelApp
    from traitlets.config import Config

    here = os.path.dirname(os.path.abspath(__file__))
    config = Config()
    config.InteractiveShell.colors = "NoColor"
    config.InteractiveShell.cache_size = 1000
    config.HistoryManager.enabled = False
    config.IPKernelApp.log_level = "ERROR"
    app = IPKernelApp.instance(config=config)
    app.initialize(["-f", sys.argv[1]])
    for name in ("debugpy", "jedi"):
        sys.modules.pop(name, None)
    app.kernel._execute_sleep = 0
    # The cell's directory, not ours, is where imports look first.
    sys.path[:] = [p for p in sys.path if p != here]
    sys.path.insert(0, "")
    sys.path.append(here)
    shell = app.shell
    keep_output(app)
    paces = Pace(sys.stdout), Pace(sys.stderr)
    formatters(shell)
    variables = Variables(shell)

    def ordered(owner, name):
        method = getattr(owner, name)

        def behind_output(*args, **kwargs):
            for p in paces:
                p.push()
            return method(*args, **kwargs)

        setattr(owner, name, behind_output)

    ordered(shell.displayhook, "finish_displayhook")
    ordered(shell.display_pub, "publish")
    ordered(shell.display_pub, "clear_output")
    ordered(shell, "_showtraceback")

    def before():
        variables.pre_execute()
        for p in paces:
            p.in_cell = True

    def after():
        variables.restore()
        for p in paces:
            p.in_cell = False

    shell.events.register("pre_execute", before)
    shell.events.register("post_execute", after)
    shell.system = lambda line: run_command(shell, line)
    show_images()
    sys.argv[:] = [""]
    # Charts work without being asked for; the backend itself loads on use.
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    warm()
    limit_memory()
    app.start()


def warm():
    """Imports what most first cells would wait for; see the docs for what it
    costs in memory."""
    for name in os.environ.pop("CAISSON_KERNEL_WARM", "").split():
        try:
            __import__(name)
        except Exception:
            pass


if __name__ == "__main__":
    main()
