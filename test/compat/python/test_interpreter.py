"""The code interpreter through e2b-code-interpreter, the way its documentation
uses it. Needs the template code-interpreter-v1."""

import asyncio
import base64
import datetime
import time

import pytest

pytest.importorskip("e2b_code_interpreter", reason="the code interpreter's SDK goes with the newest SDK only")

from e2b import NotFoundException, SandboxException, TimeoutException  # noqa: E402
from e2b_code_interpreter import AsyncSandbox, Sandbox  # noqa: E402
from e2b_code_interpreter.charts import ChartType  # noqa: E402

HEALTHY = "for i in $(seq 200); do curl -fsS -m 2 -o /dev/null http://localhost:49999/health && exit; sleep .2; done; exit 1"


@pytest.fixture(scope="module")
def box():
    box = Sandbox.create(timeout=600, envs={"GLOBAL": "everywhere"})
    try:
        yield box
    finally:
        box.kill()


def test_value_and_state(box):
    context = box.create_code_context()
    first = box.run_code("x = 41", context=context)
    assert (first.text, first.results, first.execution_count) == (None, [], 1)
    second = box.run_code("x + 1", context=context)
    assert (second.text, second.execution_count) == ("42", 2)
    assert second.results[0].is_main_result and second.results[0].extra == {}
    assert box.run_code("'quoted'").text == "quoted"
    assert box.run_code("await __import__('asyncio').sleep(0, 7)").text == "7"


def test_output(box):
    out, err, results, times = [], [], [], []
    run = box.run_code(
        "import sys\nprint(1)\nprint('bad', file=sys.stderr)\n'v'",
        on_stdout=lambda m: (out.append(m.line), times.append(m.timestamp)),
        on_stderr=lambda m: err.append(m.line),
        on_result=lambda r: results.append(r.text),
    )
    assert (out, err, results) == (["1\n"], ["bad\n"], ["v"])
    assert (run.logs.stdout, run.logs.stderr) == (["1\n"], ["bad\n"])
    # ISO 8601, as the wire has it.
    assert abs(datetime.datetime.fromisoformat(str(times[0])).timestamp() - time.time()) < 60


def test_streams_while_it_runs(box):
    seen = []
    begun = time.monotonic()
    box.run_code("import time\nprint('a')\ntime.sleep(2)\nprint('b')", on_stdout=lambda m: seen.append((m.line, time.monotonic() - begun)))
    assert [line for line, _ in seen] == ["a\n", "b\n"]
    assert seen[1][1] - seen[0][1] > 1


def test_error(box):
    errors = []
    run = box.run_code("def f():\n    return 1 / 0\nf()", on_error=errors.append)
    assert (run.error.name, run.error.value) == ("ZeroDivisionError", "division by zero")
    assert "line 2" in run.error.traceback or "----> 2" in run.error.traceback
    assert "\x1b[" not in run.error.traceback
    assert len(errors) == 1
    assert box.run_code("1 +").error.name == "SyntaxError"
    assert box.run_code("input()").error.name == "StdinNotImplementedError"


def test_shell_and_magics(box):
    run = box.run_code("name = 'world'\n!echo hello $name; echo bad >&2")
    assert (run.logs.stdout, run.logs.stderr) == (["hello world\n"], ["bad\n"])
    assert box.run_code("%pwd").text == "/home/user"


@pytest.mark.parametrize(
    "language, get",
    [
        ("python", "__import__('os').environ.get({!r})"),
        ("javascript", "process.env[{!r}]"),
        ("bash", "[ -z ${{{0}+x}} ] || echo -n ${0}"),
        ("r", "cat(Sys.getenv({!r}))"),
        ("java", "System.getProperty({0!r})"),
    ],
)
def test_env_vars(box, language, get):
    def value(name, **opts):
        code = get.format(name).replace("'", '"')
        run = box.run_code(code, language=language, timeout=60, **opts)
        assert run.error is None, run.error
        text = run.text if run.text is not None else "".join(run.logs.stdout)
        return {"null": "", "undefined": ""}.get(text, text).strip('"')

    assert value("GLOBAL") == "everywhere"
    assert value("ONCE", envs={"ONCE": "one $run `only`"}) == "one $run `only`"
    assert value("ONCE") == ""
    assert value("GLOBAL", envs={"GLOBAL": "here"}) == "here"
    assert value("GLOBAL") == "everywhere"


@pytest.mark.parametrize(
    "language, code, text, out",
    [
        ("javascript", "const x = 20; const y = await Promise.resolve(22); x + y", "42", []),
        ("js", "const x = 1; x", "1", []),
        ("javascript", "import path from 'node:path'; console.log(path.basename('/a/b'))", None, ["b\n"]),
        ("typescript", "interface A { n: number }\nenum E { X = 4 }\nconst a: A = { n: E.X };\na.n", "4", []),
        ("ts", "(<T,>(v: T): T => v)('same')", "same", []),
        ("r", "x <- c(1, 2, 3)\nmean(x)", "[1] 2", []),
        ("bash", "cd /tmp\nv=5\npwd", None, ["/tmp\n"]),
        ("bash", "echo $v; pwd", None, ["5\n/tmp\n"]),
        ("java", "int twice(int n) { return 2 * n; }\ntwice(21)", "42", []),
    ],
)
def test_languages(box, language, code, text, out):
    run = box.run_code(code, language=language, timeout=60)
    assert run.error is None, run.error
    assert run.text == text
    assert "".join(run.logs.stdout) == "".join(out)


@pytest.mark.parametrize(
    "language, code, name",
    [
        ("javascript", "null.x", "TypeError"),
        ("typescript", "const x: = 3", "SyntaxError"),
        ("r", "stop('bad')", "ERROR"),
        ("bash", "ls /nothing-here", "ExitCode"),
        ("java", 'throw new IllegalStateException("bad");', "java.lang.IllegalStateException"),
    ],
)
def test_language_errors(box, language, code, name):
    run = box.run_code(code, language=language, timeout=60)
    assert run.error is not None and run.error.name == name
    assert run.error.traceback


def test_unsupported_language(box):
    with pytest.raises(SandboxException, match='"cobol" is not supported.*bash.*java.*javascript.*python.*r.*typescript'):
        box.run_code("1", language="cobol")


def test_contexts(box):
    before = [c.id for c in box.list_code_contexts()]
    context = box.create_code_context(cwd="/tmp")
    other = box.create_code_context(language="js", cwd="/tmp")
    assert (context.language, context.cwd, other.language) == ("python", "/tmp", "javascript")
    assert [c.id for c in box.list_code_contexts()] == [*before, context.id, other.id]
    assert box.run_code("import os; os.getcwd()", context=context).text == "/tmp"
    assert box.run_code("process.cwd()", context=other).text == "/tmp"
    box.run_code("here = 1", context=context)
    assert box.run_code("here").error.name == "NameError"
    box.restart_code_context(context)
    restarted = box.run_code("here", context=context)
    assert (restarted.error.name, restarted.execution_count) == ("NameError", 1)
    assert box.run_code("import os; os.getcwd()", context=context).text == "/tmp"
    box.remove_code_context(context.id)
    assert context.id not in [c.id for c in box.list_code_contexts()]
    with pytest.raises(NotFoundException, match=f"Context {context.id} not found"):
        box.run_code("1", context=context)
    with pytest.raises(NotFoundException):
        box.restart_code_context(context.id)


def test_results(box):
    frame = box.run_code("import pandas as pd\npd.DataFrame({'n': [1, 2], 't': pd.to_datetime(['2024-01-02', None])})").results[0]
    assert frame.data == {"n": [1, 2], "t": ["2024-01-02T00:00:00", None]}
    assert "<table" in frame.html
    assert box.run_code("{'a': [1, None, True]}").results[0].json == {"a": [1, None, True]}
    custom = box.run_code(
        "class C:\n  def _repr_markdown_(self): return '**m**'\n  def _repr_svg_(self): return '<svg/>'\n"
        "  def _repr_latex_(self): return '$x$'\n  def _repr_javascript_(self): return 'f()'\n"
        "  def _repr_mimebundle_(self, **k): return {'text/plain': 'c', 'x/own': {'k': 1}}\nC()"
    ).results[0]
    assert (custom.markdown, custom.svg, custom.latex, custom.javascript) == ("**m**", "<svg/>", "$x$", "f()")
    assert custom.extra == {"x/own": {"k": 1}}
    pdf = box.run_code("from IPython.display import display\ndisplay({'application/pdf': 'JVBERi0='}, raw=True)\n3")
    assert [r.is_main_result for r in pdf.results] == [False, True] and pdf.results[0].pdf == "JVBERi0="
    image = box.run_code("from PIL import Image\nim = Image.new('RGB', (4, 4))\nim.save('/tmp/im.png')").results[0]
    assert base64.b64decode(image.png).startswith(b"\x89PNG")


CHARTS = {
    "line": ("plt.plot([1, 2], [3, 4], label='a'); plt.xlabel('time (s)')", ChartType.LINE),
    "scatter": ("plt.scatter([1, 2], [3, 4])", ChartType.SCATTER),
    "bar": ("plt.bar(['x', 'y'], [1, 2])", ChartType.BAR),
    "barh": ("plt.barh(['x', 'y'], [1, 2]); plt.xlabel('size'); plt.ylabel('what')", ChartType.BAR),
    "pie": ("plt.pie([1, 3], labels=['x', 'y'])", ChartType.PIE),
    "box": ("plt.boxplot([[1, 2, 3, 4, 40]], patch_artist=True, labels=['x'])", ChartType.BOX_AND_WHISKER),
    "super": ("f, axes = plt.subplots(2); axes[0].plot([1, 2]); axes[1].bar(['x'], [1]); f.suptitle('both')", ChartType.SUPERCHART),
    "unknown": ("plt.imshow([[1, 2]])", ChartType.UNKNOWN),
    "dates": ("import datetime; plt.plot([datetime.date(2024, 1, d) for d in (1, 2)], [1, 2])", ChartType.LINE),
    "log": ("plt.plot([1, 2], [3, 4]); plt.yscale('log')", ChartType.LINE),
}


@pytest.mark.parametrize("name", CHARTS)
def test_charts(box, name):
    code, kind = CHARTS[name]
    run = box.run_code(f"import matplotlib.pyplot as plt\n{code}\nplt.title('T') if {name!r} != 'super' else None\nplt.show()", timeout=60)
    assert run.error is None, run.error
    result = run.results[0]
    assert base64.b64decode(result.png).startswith(b"\x89PNG") and not result.is_main_result
    chart = result.chart
    assert chart.type == kind
    raw = chart.to_dict()
    assert raw["title"] == ("both" if name == "super" else "T")
    if name == "line":
        assert (chart.x_label, chart.x_unit, chart.y_label, chart.x_scale) == ("time (s)", "s", None, "linear")
        assert [(e.label, e.points) for e in chart.elements] == [("a", [(1, 3), (2, 4)])]
    elif name == "scatter":
        assert chart.elements[0].points == [(1, 3), (2, 4)]
    elif name == "bar":
        assert [(e.label, e.group, e.value) for e in chart.elements] == [("x", "Group 0", 1), ("y", "Group 0", 2)]
    elif name == "barh":
        assert [(e.label, e.value) for e in chart.elements] == [("x", 1), ("y", 2)]
        assert (chart.x_label, chart.y_label) == ("what", "size")
    elif name == "pie":
        assert [(e.label, e.angle, e.radius) for e in chart.elements] == [("x", 90, 1), ("y", 270, 1)]
    elif name == "box":
        e = chart.elements[0]
        assert (e.label, e.min, e.first_quartile, e.median, e.third_quartile, e.max) == ("x", 1, 2, 3, 4, 4)
        assert e.outliers == [40]
    elif name == "super":
        assert [e.type for e in chart.elements] == [ChartType.LINE, ChartType.BAR]
    elif name == "dates":
        assert chart.x_scale == "datetime" and chart.elements[0].points[0][0].startswith("2024-01-01")
    elif name == "log":
        assert chart.y_scale == "log"


def test_kernel_dies(box):
    context = box.create_code_context()
    run = box.run_code("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", context=context)
    assert run.error.name == "ContextRestarting"
    assert box.run_code("1 + 1", context=context).text == "2"


@pytest.mark.parametrize("language, endless, after", [("python", "while True: pass", "1"), ("javascript", "while (true) {}", "1"), ("bash", "while :; do sleep 1; done", None)])
def test_interrupt(box, language, endless, after):
    context = box.create_code_context(language=language)
    box.run_code("kept=1", context=context)
    with pytest.raises(TimeoutException):
        box.run_code(endless, context=context, timeout=2)
    begun = time.monotonic()
    run = box.run_code("kept" if after else "echo $kept", context=context)
    assert time.monotonic() - begun < 10
    assert (run.text or "".join(run.logs.stdout).strip()) == "1", "the state was lost"


def test_out_of_memory(box):
    context = box.create_code_context()
    assert box.run_code("bytearray(1 << 40)", context=context).error.name == "MemoryError"
    run = box.run_code("kept = []\nwhile True: kept.append(bytearray(32 << 20))", context=context, timeout=60)
    assert run.error.name in ("ContextRestarting", "MemoryError")
    assert box.run_code("1 + 1", context=context).text == "2"
    assert box.run_code("2 + 1").text == "3", "another context suffered"


def test_large_output(box):
    for code in ("for i in range(50 * 1024): print('x' * 1023)", "print('x' * ((50 << 20) - 1))"):
        run = box.run_code(code, timeout=60)
        assert sum(map(len, run.logs.stdout)) == 50 << 20


def test_many_contexts():
    box = Sandbox.create(timeout=600)
    try:
        contexts = [box.create_code_context() for _ in range(20)]
        for i, context in enumerate(contexts):
            box.run_code(f"v = {i}", context=context)
        assert [box.run_code("v", context=c).text for c in contexts] == [str(i) for i in range(20)]
        # The server is ended: it comes back.
        box.commands.run("pkill -9 -f '[i]nterpreter serve'; sleep 1; " + HEALTHY, user="root", timeout=60)
        assert box.run_code("6 * 7").text == "42"
    finally:
        box.kill()


def test_killed_while_running():
    box = Sandbox.create(timeout=600)

    async def both():
        other = await AsyncSandbox.connect(box.sandbox_id)
        run = asyncio.create_task(other.run_code("import time; print('on', flush=True); time.sleep(60)", timeout=60))
        await asyncio.sleep(2)
        await asyncio.to_thread(box.kill)
        with pytest.raises(TimeoutException, match="killed while the request was in progress"):
            await run

    try:
        asyncio.run(both())
    finally:
        box.kill()
