// Runs cells of Java for Caisson's code interpreter with the engine of jshell.
// Cells come as lines of JSON on descriptor 3, events go to descriptor 4; the
// shell runs code in this process, so that a cell's output is ours to catch.

import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.LinkedBlockingQueue;
import jdk.jshell.DeclarationSnippet;
import jdk.jshell.Diag;
import jdk.jshell.EvalException;
import jdk.jshell.ExpressionSnippet;
import jdk.jshell.JShell;
import jdk.jshell.JShellException;
import jdk.jshell.Snippet;
import jdk.jshell.SnippetEvent;
import jdk.jshell.SourceCodeAnalysis;
import jdk.jshell.SourceCodeAnalysis.CompletionInfo;
import jdk.jshell.VarSnippet;

public class Kernel {
    static final int PIECE = 1 << 20;
    static PrintStream events;
    static volatile JShell shell;
    static volatile boolean running;
    static volatile boolean interrupted;
    static boolean failed;

    public static void main(String[] args) throws Exception {
        events = new PrintStream(new FileOutputStream("/proc/self/fd/4"), true, StandardCharsets.UTF_8);
        System.setIn(java.io.InputStream.nullInputStream());
        System.setOut(new PrintStream(new Output("stdout"), true, StandardCharsets.UTF_8));
        System.setErr(new PrintStream(new Output("stderr"), true, StandardCharsets.UTF_8));
        System.setProperty("user.dir", Path.of("").toAbsolutePath().toString());
        shell = JShell.builder().executionEngine("local").build();
        for (String name : new String[] {"java.io.*", "java.math.*", "java.net.*", "java.nio.file.*", "java.util.*",
                "java.util.concurrent.*", "java.util.function.*", "java.util.prefs.*", "java.util.regex.*", "java.util.stream.*"}) {
            shell.eval("import " + name + ";");
        }
        var cells = new LinkedBlockingQueue<Map<String, Object>>();
        Thread reader = new Thread(() -> read(cells), "cells");
        reader.setDaemon(true);
        reader.start();
        emit("ready", null);
        while (true) {
            Map<String, Object> cell = cells.take();
            Map<String, String> before = new HashMap<>();
            setAll(cell.get("globals"), null);
            setAll(cell.get("env"), before);
            interrupted = failed = false;
            running = true;
            try {
                run((String) cell.get("code"));
            } catch (Throwable t) {
                error(t.getClass().getName(), String.valueOf(t.getMessage()), t.toString());
            }
            running = false;
            if (interrupted && !failed) error("KeyboardInterrupt", "the cell was interrupted", "the cell was interrupted");
            before.forEach((k, v) -> {
                if (v == null) System.clearProperty(k);
                else System.setProperty(k, v);
            });
            System.out.flush();
            System.err.flush();
            emit("done", null);
        }
    }

    @SuppressWarnings("unchecked")
    static void setAll(Object vars, Map<String, String> before) {
        if (vars == null) return;
        ((Map<String, Object>) vars).forEach((k, v) -> {
            String old = System.setProperty(k, (String) v);
            if (before != null) before.put(k, old);
        });
    }

    static void read(LinkedBlockingQueue<Map<String, Object>> cells) {
        try (var in = new BufferedReader(new InputStreamReader(new FileInputStream("/proc/self/fd/3"), StandardCharsets.UTF_8))) {
            for (String line; (line = in.readLine()) != null;) {
                @SuppressWarnings("unchecked")
                var cell = (Map<String, Object>) new Json(line).value();
                if (Boolean.TRUE.equals(cell.get("interrupt"))) {
                    if (running) {
                        interrupted = true;
                        stop();
                    }
                } else {
                    cells.put(cell);
                }
            }
        } catch (Exception e) {
            // the end
        }
        Runtime.getRuntime().halt(0);
    }

    // stop ends the cell. The shell stops what it runs at the moment, and a cell
    // has many snippets.
    static void stop() {
        Thread stopper = new Thread(() -> {
            while (running && interrupted) {
                shell.stop();
                try {
                    Thread.sleep(50);
                } catch (InterruptedException e) {
                    return;
                }
            }
        }, "stop");
        stopper.setDaemon(true);
        stopper.start();
    }

    // run evaluates the snippets of a cell until one fails.
    static void run(String code) {
        SourceCodeAnalysis analysis = shell.sourceCodeAnalysis();
        String rest = code;
        String value = null;
        while (!rest.isBlank() && !interrupted) {
            CompletionInfo info = analysis.analyzeCompletion(rest);
            String source = info.completeness().isComplete() ? info.source() : rest;
            if (source == null || source.isBlank()) source = rest;
            value = null;
            for (SnippetEvent e : shell.eval(source)) {
                if (e.causeSnippet() != null) continue; // an older one that is affected
                if (e.status() == Snippet.Status.REJECTED) {
                    rejected(e.snippet());
                    return;
                }
                if (e.exception() != null) {
                    thrown(e.exception());
                    return;
                }
                Snippet s = e.snippet();
                if (s instanceof ExpressionSnippet || s instanceof VarSnippet && s.subKind() == Snippet.SubKind.TEMP_VAR_EXPRESSION_SUBKIND) {
                    value = e.value();
                } else if (s instanceof DeclarationSnippet d && e.status() == Snippet.Status.RECOVERABLE_NOT_DEFINED) {
                    shell.unresolvedDependencies(d).forEach(n -> System.err.println("not defined yet: " + n));
                }
            }
            if (!info.completeness().isComplete()) break;
            rest = info.remaining();
        }
        if (value != null && !value.isEmpty()) {
            emit("result", "\"main\":true,\"data\":{\"text/plain\":" + quote(value) + "}");
        }
    }

    static void rejected(Snippet s) {
        List<String> lines = new ArrayList<>();
        for (Diag d : shell.diagnostics(s).toList()) lines.add(d.getMessage(null));
        String text = String.join("\n", lines);
        error("CompilationException", text, text + "\n" + s.source());
    }

    static void thrown(JShellException e) {
        String name = e instanceof EvalException x ? x.getExceptionClassName() : e.getClass().getName();
        StringBuilder trace = new StringBuilder(name + ": " + e.getMessage());
        for (StackTraceElement at : e.getStackTrace()) trace.append("\n\tat ").append(at);
        if (name.equals("java.lang.ThreadDeath")) {
            name = "KeyboardInterrupt";
            trace = new StringBuilder("the cell was interrupted");
        }
        error(name, String.valueOf(e.getMessage()), trace.toString());
    }

    static void error(String name, String value, String trace) {
        failed = true;
        emit("error", "\"name\":" + quote(name) + ",\"value\":" + quote(value) + ",\"traceback\":" + quote(trace));
    }

    static void emit(String type, String members) {
        String line = "{\"type\":\"" + type + "\"" + (members == null ? "" : "," + members) + "}\n";
        synchronized (events) {
            events.print(line);
            events.flush();
        }
    }

    static String quote(String s) {
        StringBuilder b = new StringBuilder(s.length() + 16).append('"');
        for (int i = 0; i < s.length(); i++) {
            char c = s.charAt(i);
            switch (c) {
                case '"' -> b.append("\\\"");
                case '\\' -> b.append("\\\\");
                case '\n' -> b.append("\\n");
                default -> {
                    boolean alone = Character.isHighSurrogate(c) && (i + 1 == s.length() || !Character.isLowSurrogate(s.charAt(i + 1)))
                            || Character.isLowSurrogate(c) && (i == 0 || !Character.isHighSurrogate(s.charAt(i - 1)));
                    if (c < 0x20 || alone) b.append(String.format("\\u%04x", (int) c));
                    else b.append(c);
                }
            }
        }
        return b.append('"').toString();
    }

    // Output gathers what is printed and emits it at ends of lines and flushes.
    static final class Output extends OutputStream {
        final String type;
        final byte[] buffer = new byte[PIECE];
        int used;

        Output(String type) {
            this.type = type;
        }

        @Override
        public synchronized void write(int b) {
            if (used == buffer.length) flush();
            buffer[used++] = (byte) b;
        }

        @Override
        public synchronized void write(byte[] b, int off, int len) {
            while (len > 0) {
                if (used == buffer.length) flush();
                int n = Math.min(len, buffer.length - used);
                System.arraycopy(b, off, buffer, used, n);
                used += n;
                off += n;
                len -= n;
            }
        }

        @Override
        public synchronized void flush() {
            // What begins a character is kept for the rest of it.
            int end = used;
            for (int back = 1; back < 4 && back <= used; back++) {
                int b = buffer[used - back] & 0xff;
                if (b >= 0xc0) {
                    if ((b >= 0xf0 ? 4 : b >= 0xe0 ? 3 : 2) > back) end = used - back;
                    break;
                }
                if (b < 0x80) break;
            }
            if (end == 0) return;
            String text = new String(buffer, 0, end, StandardCharsets.UTF_8);
            System.arraycopy(buffer, end, buffer, 0, used - end);
            used -= end;
            emit(type, "\"text\":" + quote(text));
        }
    }

    // Json reads the little of JSON that cells use.
    static final class Json {
        final String s;
        int at;

        Json(String s) {
            this.s = s;
        }

        Object value() {
            space();
            char c = s.charAt(at);
            if (c == '{') {
                Map<String, Object> m = new HashMap<>();
                at++;
                for (space(); s.charAt(at) != '}'; space()) {
                    if (s.charAt(at) == ',') at++;
                    space();
                    String key = string();
                    space();
                    at++; // the colon
                    m.put(key, value());
                }
                at++;
                return m;
            }
            if (c == '"') return string();
            int from = at;
            while (at < s.length() && ",}] ".indexOf(s.charAt(at)) < 0) at++;
            return switch (s.substring(from, at)) {
                case "true" -> true;
                case "false" -> false;
                default -> null;
            };
        }

        void space() {
            while (at < s.length() && s.charAt(at) <= ' ') at++;
        }

        String string() {
            StringBuilder b = new StringBuilder();
            for (at++; s.charAt(at) != '"'; at++) {
                char c = s.charAt(at);
                if (c != '\\') {
                    b.append(c);
                    continue;
                }
                c = s.charAt(++at);
                switch (c) {
                    case 'n' -> b.append('\n');
                    case 't' -> b.append('\t');
                    case 'r' -> b.append('\r');
                    case 'b' -> b.append('\b');
                    case 'f' -> b.append('\f');
                    case 'u' -> {
                        b.append((char) Integer.parseInt(s.substring(at + 1, at + 5), 16));
                        at += 4;
                    }
                    default -> b.append(c);
                }
            }
            at++;
            return b.toString();
        }
    }
}
