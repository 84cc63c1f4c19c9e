package telemetry

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics is the registry of one server with its own metrics. Labels come
// from small fixed sets; any other value is counted as "other". It is safe
// for concurrent use, and methods of a nil *Metrics do nothing.
type Metrics struct {
	registry *prometheus.Registry

	sandboxes     *prometheus.GaugeVec
	creates       *prometheus.CounterVec
	createSeconds prometheus.Histogram
	ended         *prometheus.CounterVec
	pauseSeconds  prometheus.Histogram
	resumeSeconds prometheus.Histogram
	proxied       *prometheus.CounterVec
	proxySeconds  *prometheus.HistogramVec
	api           *prometheus.CounterVec
	apiSeconds    prometheus.Histogram
	flows         *prometheus.CounterVec
	egressBytes   *prometheus.CounterVec
	createQueue   prometheus.Gauge
	createWait    prometheus.Histogram
	createRefused *prometheus.CounterVec
	poolTaken     *prometheus.CounterVec
	poolBooted    *prometheus.CounterVec
	poolBoxes     prometheus.Gauge
	poolPrebooted prometheus.Gauge
	poolFill      prometheus.Histogram
	poolFailed    prometheus.Counter
}

// The values that labels can take.
var (
	states      = []string{"pending", "running", "pausing", "paused", "resuming", "killing", "killed", "failed"}
	results     = []string{"ok", "invalid", "limit", "error"}
	reasons     = []string{"killed", "timeout", "oom", "crashed", "engine_lost", "orphaned", "exited", "failed", "budget", "retention"}
	refusals    = []string{"queue_full", "queue_wait", "memory"}
	targets     = []string{"agent", "port"}
	flowKinds   = []string{"tcp", "dns", "udp"}
	verdicts    = []string{"allow", "deny"}
	codeClasses = []string{"1xx", "2xx", "3xx", "4xx", "5xx"}
)

// NewMetrics registers everything, with the Go runtime and the process.
func NewMetrics(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "caisson_" + name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	buckets := []float64{.001, .0025, .005, .01, .025, .05, .075, .1, .15, .25, .5, 1, 2.5, 5, 10, 30}
	m.creates = counter("sandbox_creates_total", "Sandbox creates by result.", "result")
	m.ended = counter("sandboxes_ended_total", "Sandboxes that ended, by reason.", "reason")
	m.proxied = counter("proxied_requests_total", "Requests to sandbox ports by target and status class.", "target", "code")
	m.api = counter("api_requests_total", "API requests by status class.", "code")
	m.flows = counter("egress_flows_total", "Outbound flows decided, by kind and verdict.", "kind", "verdict")
	m.egressBytes = counter("egress_bytes_total", "Bytes through the egress gateway, seen from the sandbox.", "direction")
	m.sandboxes = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "caisson_sandboxes", Help: "Sandboxes now, by state."}, []string{"state"})
	m.createSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "caisson_sandbox_create_seconds", Help: "Time of successful creates.", Buckets: buckets})
	m.pauseSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "caisson_sandbox_pause_seconds", Help: "Time to save a sandbox and end its processes.", Buckets: buckets})
	m.resumeSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "caisson_sandbox_resume_seconds", Help: "Time to resume a sandbox.", Buckets: buckets})
	m.apiSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "caisson_api_request_seconds", Help: "Time of API requests.", Buckets: buckets})
	m.proxySeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "caisson_proxied_first_byte_seconds", Help: "Time until a sandbox port answered.", Buckets: buckets}, []string{"target"})
	m.createQueue = prometheus.NewGauge(prometheus.GaugeOpts{Name: "caisson_create_queue", Help: "Creates, resumes and children of forks that wait to be started."})
	m.createWait = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "caisson_create_queue_seconds", Help: "Time that those which were let in had waited.", Buckets: buckets})
	m.createRefused = counter("create_refused_total", "Creates, resumes and children of forks that were not let in, by reason.", "reason")
	m.poolTaken = counter("pool_taken_total", "Creates that found a warm sandbox (hit) or did not (miss).", "result")
	m.poolBooted = counter("pool_prebooted_taken_total", "Boxes to start or to restore into that were found prebooted (hit) or were not (miss).", "result")
	m.poolPrebooted = prometheus.NewGauge(prometheus.GaugeOpts{Name: "caisson_pool_prebooted", Help: "Prebooted sandboxes now."})
	m.poolBoxes = prometheus.NewGauge(prometheus.GaugeOpts{Name: "caisson_pool_sandboxes", Help: "Warm sandboxes now."})
	m.poolFill = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "caisson_pool_fill_seconds", Help: "Time to start one warm sandbox.", Buckets: buckets})
	m.poolFailed = prometheus.NewCounter(prometheus.CounterOpts{Name: "caisson_pool_fill_failures_total", Help: "Warm sandboxes that could not be started."})
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "caisson_build_info", Help: "1, with the version."}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	m.registry.MustRegister(m.sandboxes, m.createSeconds, m.pauseSeconds, m.resumeSeconds, m.apiSeconds, m.proxySeconds, build,
		m.createQueue, m.createWait, m.poolBoxes, m.poolPrebooted, m.poolFill, m.poolFailed,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, s := range states {
		m.sandboxes.WithLabelValues(s)
	}
	for _, r := range results {
		m.creates.WithLabelValues(r)
	}
	for _, r := range refusals {
		m.createRefused.WithLabelValues(r)
	}
	for _, v := range verdicts {
		m.flows.WithLabelValues("tcp", v)
	}
	return m
}

// Registry takes further collectors of other packages.
func (m *Metrics) Registry() prometheus.Registerer { return m.registry }

// Handler serves the registry to Prometheus.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

func known(set []string, v string) string {
	if slices.Contains(set, v) {
		return v
	}
	return "other"
}

func class(status int) string { return known(codeClasses, strconv.Itoa(status/100)+"xx") }

// SetSandboxes sets how many sandboxes are in each state; states that are not
// named have none.
func (m *Metrics) SetSandboxes(byState map[string]int) {
	if m == nil {
		return
	}
	for _, s := range states {
		m.sandboxes.WithLabelValues(s).Set(float64(byState[s]))
	}
}

// Created counts a create: result is ok, invalid, limit or error. took counts
// only when it is ok.
func (m *Metrics) Created(result string, took time.Duration) {
	if m == nil {
		return
	}
	m.creates.WithLabelValues(known(results, result)).Inc()
	if result == "ok" {
		m.createSeconds.Observe(took.Seconds())
	}
}

// Paused counts a pause.
func (m *Metrics) Paused(took time.Duration) {
	if m != nil {
		m.pauseSeconds.Observe(took.Seconds())
	}
}

// Resumed counts a resume.
func (m *Metrics) Resumed(took time.Duration) {
	if m != nil {
		m.resumeSeconds.Observe(took.Seconds())
	}
}

// Ended counts the end of a sandbox by its reason.
func (m *Metrics) Ended(reason string) {
	if m == nil {
		return
	}
	m.ended.WithLabelValues(known(reasons, reason)).Inc()
}

// Proxied counts a request to a sandbox; target is agent or port.
func (m *Metrics) Proxied(target string, status int, firstByte time.Duration) {
	if m == nil {
		return
	}
	target = known(targets, target)
	m.proxied.WithLabelValues(target, class(status)).Inc()
	m.proxySeconds.WithLabelValues(target).Observe(firstByte.Seconds())
}

// Request counts an API request.
func (m *Metrics) Request(status int, took time.Duration) {
	if m == nil {
		return
	}
	m.api.WithLabelValues(class(status)).Inc()
	m.apiSeconds.Observe(took.Seconds())
}

// Flow counts an egress decision; kind is tcp, dns or udp, verdict allow or
// deny. Bytes are those sent and received by the sandbox.
func (m *Metrics) Flow(kind, verdict string, out, in int64) {
	if m == nil {
		return
	}
	m.flows.WithLabelValues(known(flowKinds, kind), known(verdicts, verdict)).Inc()
	m.egressBytes.WithLabelValues("out").Add(float64(max(out, 0)))
	m.egressBytes.WithLabelValues("in").Add(float64(max(in, 0)))
}

// SetCreateQueue sets how many wait to be started.
func (m *Metrics) SetCreateQueue(n int) {
	if m != nil {
		m.createQueue.Set(float64(n))
	}
}

// CreateWaited counts one that was let in after a wait.
func (m *Metrics) CreateWaited(took time.Duration) {
	if m != nil {
		m.createWait.Observe(took.Seconds())
	}
}

// CreateRefused counts one that was not let in: reason is queue_full, queue_wait
// or memory.
func (m *Metrics) CreateRefused(reason string) {
	if m != nil {
		m.createRefused.WithLabelValues(known(refusals, reason)).Inc()
	}
}

// PoolTaken counts a create that found a warm sandbox, or did not.
func (m *Metrics) PoolTaken(hit bool) {
	if m == nil {
		return
	}
	m.poolTaken.WithLabelValues(hitOrMiss(hit)).Inc()
}

// PrebootedTaken counts one that wanted a prebooted box, and whether it got one.
func (m *Metrics) PrebootedTaken(hit bool) {
	if m == nil {
		return
	}
	m.poolBooted.WithLabelValues(hitOrMiss(hit)).Inc()
}

func hitOrMiss(hit bool) string {
	if hit {
		return "hit"
	}
	return "miss"
}

// PoolMade counts a warm sandbox that was started, or could not be.
func (m *Metrics) PoolMade(took time.Duration, err error) {
	if m == nil {
		return
	}
	if err != nil {
		m.poolFailed.Inc()
		return
	}
	m.poolFill.Observe(took.Seconds())
}

// SetPool sets how many warm sandboxes there are.
func (m *Metrics) SetPool(n int) {
	if m == nil {
		return
	}
	m.poolBoxes.Set(float64(n))
}

// SetPrebooted sets how many prebooted boxes there are.
func (m *Metrics) SetPrebooted(n int) {
	if m == nil {
		return
	}
	m.poolPrebooted.Set(float64(n))
}
