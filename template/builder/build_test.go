package builder_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/builder"
)

// TestSteps runs every kind of step and looks at the sandbox that comes of it.
func TestSteps(t *testing.T) {
	w := newWorld(t, builder.Limits{})
	base := w.base()
	plan := template.Plan{
		Build: "b1", Base: base,
		Files: archives(map[string][]byte{
			"h1": pack(t, file("app/main", "main"), file("app/lib/x", "x"), link("app/l", "main")),
			"h2": pack(t, file("conf", "conf")),
		}),
		Steps: []template.Step{
			step("RUN", "id -un; pwd; echo to-stderr >&2"),
			step("ENV", "GREETING", "hello", "PATH", "/opt/bin:$PATH", "RAW", `a\$b $(id) ${GREETING}`),
			step("WORKDIR", "/srv/app"),
			copyStep("h1", "app/", "."),
			copyStep("h2", "conf", "/etc/app/", "root", "600"),
			step("USER", "worker", "true"),
			step("RUN", "id -un > who && pwd >> who && echo $GREETING >> who && cat main >> who", "user"),
			step("RUN", "rm /etc/old && rm -r /code && mkdir /code && echo fresh > /code/new", "root"),
			step("WORKDIR", "sub"),
			step("RUN", "id -un > /tmp/x; touch made-by-worker"),
		},
	}
	a := w.must(plan)
	if a.User != "worker" || a.Workdir != "/srv/app/sub" || a.Memory != nil {
		t.Errorf("artifacts = %+v", a)
	}
	if got := a.Env["GREETING"] + "|" + a.Env["LANG"] + "|" + a.Env["RAW"]; got != "hello|C.UTF-8|a$b $(id) hello" {
		t.Errorf("environment = %q", got)
	}
	if got := a.Env["PATH"]; !strings.HasPrefix(got, "/opt/bin:/") {
		t.Errorf("PATH = %q", got)
	}
	got := w.try(a, "", `cd /srv/app; cat who; echo; cat lib/x; ls -l l | grep -o 'l -> main'; stat -c '%a %U' /etc/app/conf main lib sub; `+
		`stat -c %U sub/made-by-worker; ls /code /etc/old 2>&1; pwd; id -un; ls /tmp /.e2b | grep x`)
	want := "user\n/srv/app\nhello\nmain\nxl -> main\n600 root\n644 user\n755 user\n755 worker\nworker\n" +
		"ls: cannot access '/etc/old': No such file or directory\n/code:\nnew\n/srv/app\nworker\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("in the sandbox (-want +got):\n%s", diff)
	}
	if got := w.try(a, "root", "head -n 1 /etc/sudoers.d/worker"); got != "worker ALL=(ALL:ALL) NOPASSWD: ALL\n" {
		t.Errorf("sudoers = %q", got)
	}
	for _, line := range []string{"1 info user\n", "1 info /home/user\n", "1 warn to-stderr\n", "3 info [builder 3/10] WORKDIR /srv/app\n"} {
		if !strings.Contains(w.text(), line) {
			t.Errorf("the log lacks %q:\n%s", line, w.text())
		}
	}
	if left := w.leftovers(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestCacheIsTheTeams: the hash of files is what a client says. A team gets
// neither what another uploaded under it nor what another's steps made.
func TestCacheIsTheTeams(t *testing.T) {
	w := newWorld(t, builder.Limits{})
	base := w.base()
	plan := func(team identity.TeamID, body string) template.Plan {
		return template.Plan{
			Build: "b", Team: team, Base: base, Files: archives(map[string][]byte{"same": pack(t, file("f", body))}),
			Steps: []template.Step{copyStep("same", "f", "/srv/")},
		}
	}
	w.must(plan("evil", "evil"))
	if got := w.try(w.must(plan("good", "good")), "", "cat /srv/f"); got != "good" {
		t.Errorf("the file of the second team = %q", got)
	}
	if got := w.cachedSteps(); got != nil {
		t.Errorf("cached steps = %v", got)
	}
	w.must(plan("good", "good"))
	if got := w.cachedSteps(); len(got) != 1 {
		t.Errorf("cached steps of the same team = %v", got)
	}
}

// TestCache: what was run is not run again, a change runs what follows it, force
// runs from a step on.
func TestCache(t *testing.T) {
	w := newWorld(t, builder.Limits{})
	base := w.base()
	files := archives(map[string][]byte{"h1": pack(t, file("f", "one")), "h2": pack(t, file("f", "two"))})
	plan := func(hash string, forced int, last ...string) template.Plan {
		p := template.Plan{Build: "b", Base: base, Files: files, Steps: []template.Step{
			step("RUN", "head -c 16 /dev/urandom | sha256sum > $HOME/first"),
			step("ENV", "A", "1"),
			copyStep(hash, "f", "/srv/"),
			step("RUN", "head -c 16 /dev/urandom | sha256sum > $HOME/last"),
		}}
		for _, line := range last {
			p.Steps = append(p.Steps, step("RUN", line))
		}
		if forced > 0 {
			p.Steps[forced-1].Force = true
		}
		return p
	}
	show := func(a template.Artifacts) [3]string {
		lines := strings.SplitN(w.try(a, "", "cat ~/first ~/last /srv/f"), "\n", 3)
		return [3]string(lines)
	}
	first := w.must(plan("h1", 0))
	if got := w.cachedSteps(); got != nil {
		t.Errorf("cached steps of the first build = %v", got)
	}
	want := show(first)
	again := w.must(plan("h1", 0))
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("the same build again (-first +again):\n%s", diff)
	}
	if diff := cmp.Diff([]int{1, 2, 3, 4}, w.cachedSteps()); diff != "" {
		t.Errorf("cached steps (-want +got):\n%s", diff)
	}
	// Another step is run on what there is.
	longer := w.must(plan("h1", 0, "cat $HOME/last > $HOME/copy; rm $HOME/last; echo $A >> $HOME/copy"))
	if diff := cmp.Diff([]int{1, 2, 3, 4}, w.cachedSteps()); diff != "" {
		t.Errorf("cached steps (-want +got):\n%s", diff)
	}
	if got := w.try(longer, "", "cat ~/copy; ls ~/last 2>&1"); got != want[1]+"\n1\nls: cannot access '/home/user/last': No such file or directory\n" {
		t.Errorf("on a cached layer = %q", got)
	}
	// Other files: their step and all after it.
	other := show(w.must(plan("h2", 0)))
	if diff := cmp.Diff([]int{1, 2}, w.cachedSteps()); diff != "" {
		t.Errorf("cached steps (-want +got):\n%s", diff)
	}
	if other[0] != want[0] || other[1] == want[1] || other[2] != "two" {
		t.Errorf("with other files = %q, before %q", other, want)
	}
	forced := show(w.must(plan("h1", 4)))
	if diff := cmp.Diff([]int{1, 2, 3}, w.cachedSteps()); diff != "" {
		t.Errorf("cached steps (-want +got):\n%s", diff)
	}
	if forced[0] != want[0] || forced[1] == want[1] {
		t.Errorf("with the last step forced = %q, before %q", forced, want)
	}
	all := plan("h1", 0)
	all.Force = true
	if got := show(w.must(all)); got[0] == want[0] || w.cachedSteps() != nil {
		t.Errorf("with all forced = %q, before %q, cached %v", got, want, w.cachedSteps())
	}
	if left := w.leftovers(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
