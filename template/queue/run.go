package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/template"
)

// run carries one build out and records its end, unless ctx ends: then the
// build stays as it is, for the next server.
func (q *Queue) run(ctx context.Context, j *job) {
	log := q.deps.Log.With(slog.String("build", string(j.Build)), slog.String("template", string(j.Template)))
	var b template.Build
	err := insist(ctx, func(ctx context.Context) (err error) {
		b, err = q.deps.Records.GetBuild(ctx, j.Build)
		return err
	})
	if err != nil {
		if !errdefs.IsNotFound(err) && ctx.Err() == nil { // with its template
			log.ErrorContext(ctx, "build cannot be read; the next start of the server begins it again", slog.Any("error", err))
		}
		return
	}
	bctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	q.mu.Lock()
	j.cancel = cancel
	if j.ended != nil {
		cancel(j.ended)
	}
	q.mu.Unlock()
	bctx, stop := context.WithTimeoutCause(bctx, q.cfg.Timeout,
		fmt.Errorf("the build took longer than %s: %w", q.cfg.Timeout, errdefs.ErrAborted))
	defer stop()

	began := time.Now()
	after := context.WithoutCancel(ctx)
	var w *journal
	err = insist(ctx, func(context.Context) (err error) {
		w, err = newJournal(ctx, q.deps.Store, j.Build, log)
		return err
	})
	if err != nil {
		log.ErrorContext(ctx, "log of a build cannot be read; the next start of the server begins it again", slog.Any("error", err))
		return
	}
	a, err := q.execute(bctx, j, b, w)
	cause := context.Cause(bctx)
	decided := errors.Is(cause, ErrCancelled) || errors.Is(cause, errDeleted) || errors.Is(err, ErrCancelled)
	if err != nil && cause != nil {
		log.DebugContext(ctx, "build was ended", slog.Any("error", err))
		if step, ok := errors.AsType[*template.StepError](err); ok {
			cause = &template.StepError{Step: step.Step, Err: cause}
		}
		err = cause
	}
	if err != nil && ctx.Err() != nil && !decided {
		w.line(template.Warn, "", errStopping.Error()+"; the build begins again with the next one")
		w.close()
		if j.counted { // it did not bring the server down
			rctx, done := context.WithTimeout(after, finishTimeout)
			defer done()
			if err := q.deps.Store.RetractAttempt(rctx, j.Build); err != nil {
				log.WarnContext(ctx, "a build's attempt counts although the server stopped in order", slog.Any("error", err))
			}
		}
		return
	}
	if err == nil {
		err = q.sync(after, a)
	}
	ended, ferr := q.end(ctx, b, a, err, w)
	if errors.Is(ferr, ErrCancelled) {
		err = ErrCancelled
		if w, ferr = newJournal(ctx, q.deps.Store, j.Build, log); ferr == nil {
			ended, ferr = q.end(ctx, b, a, err, w)
		}
	}
	b = ended
	switch {
	case errdefs.IsNotFound(ferr):
		log.InfoContext(ctx, "template was deleted while it was built")
	case ferr != nil:
		log.ErrorContext(ctx, "end of a build cannot be recorded; the next start of the server begins it again", slog.Any("error", ferr))
	case err != nil:
		log.WarnContext(ctx, "build failed", slog.String("step", b.Step), slog.String("reason", b.Reason), slog.Duration("took", time.Since(began)))
	default:
		log.InfoContext(ctx, "build finished", slog.Duration("took", time.Since(began)), slog.String("rootfs", b.Rootfs.Digest))
	}
}

// end records the end of a build, and closes its log: whoever sees the end must
// find every line. ErrCancelled when it was cancelled after all was done.
func (q *Queue) end(ctx context.Context, b template.Build, a template.Artifacts, err error, w *journal) (template.Build, error) {
	b.FinishedAt = now()
	if err == nil {
		b.Status = template.Ready
		b.Rootfs, b.User, b.Workdir, b.Env, b.Artifact = a.Rootfs, a.User, a.Workdir, a.Env, a.Memory
	} else {
		b.Status = template.Failed
		b.Step, b.Reason = blame(err), w.redact(reason(err, string(b.ID)))
		w.line(template.Error, b.Step, b.Reason)
	}
	w.close()
	return b, insist(ctx, func(ctx context.Context) error { return q.deps.Store.FinishBuild(ctx, b, "system") })
}

const (
	// patience is how long a database may be away: less than what a build has saved
	// is safe for without a record.
	patience     = 5 * time.Minute
	firstPause   = 100 * time.Millisecond
	longestPause = 10 * time.Second
)

// insist calls fn, whose context outlives ctx, until it succeeds or fails for
// good, ctx has ended or patience is over: what a build came to is not lost, nor
// the build stuck until the next start, because the database was away for a moment.
func insist(ctx context.Context, fn func(context.Context) error) error {
	give := time.Now().Add(patience)
	for wait := firstPause; ; wait = min(2*wait, longestPause) {
		fctx, done := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
		err := fn(fctx)
		done()
		if err == nil || errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsInvalidArgument(err) || errors.Is(err, ErrCancelled) || time.Now().After(give) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

func (q *Queue) sync(ctx context.Context, a template.Artifacts) error {
	if a.Memory == nil || q.deps.Vault == nil {
		return nil
	}
	if err := q.deps.Vault.Sync(ctx, a.Memory.ID); err != nil {
		return &template.StepError{Step: -1, Err: fmt.Errorf("keep the memory of the build: %w", err)}
	}
	return nil
}

// execute resolves the recipe of a build and has it carried out.
func (q *Queue) execute(ctx context.Context, j *job, b template.Build, w *journal) (a template.Artifacts, err error) {
	if err := context.Cause(ctx); err != nil {
		return a, err
	}
	if j.Attempts >= maxAttempts {
		return a, fmt.Errorf("the server ended %d times while it was being built: %w", j.Attempts, errdefs.ErrAborted)
	}
	if w.seq > 0 {
		w.line(template.Warn, "", "the server was restarted; the build begins again")
	}
	if err := q.deps.Store.AttemptBuild(ctx, j.Build); errors.Is(err, ErrCancelled) {
		return a, ErrCancelled // without the store's words, as when it is cancelled here
	} else if err != nil {
		return a, err
	}
	j.counted = true
	k, err := q.unseal(j.Pending)
	if err != nil {
		return a, err
	}
	w.keep(k.Password)
	w.steps = len(k.Steps)
	p := template.Plan{
		Build: b.ID, Team: j.Team, Image: template.ImageSource{Ref: k.Image, Username: k.Username, Password: k.Password},
		Start: k.Start, Ready: k.Ready, Resources: b.Resources, Force: k.Force,
		Files: func(_ context.Context, hash string) (io.ReadCloser, error) { return q.deps.Files.Open(j.Team, hash) },
	}
	if k.Imported {
		base, err := q.deps.Catalog.Build(ctx, b.ID)
		if err != nil {
			return a, &template.StepError{Err: fmt.Errorf("the files that were imported: %w", err)}
		}
		base.Status = template.Ready // as far as files go
		p.Base = &base
	}
	if k.Base != "" {
		base, err := q.deps.Catalog.Build(ctx, k.Base)
		if err != nil {
			return a, &template.StepError{Err: fmt.Errorf("the template that it stands on: %w", err)}
		}
		p.Base = &base
	}
	for i, s := range k.Steps {
		if s, err = prepare(s); err == nil && s.Type == "COPY" {
			err = q.uploaded(j, s)
		}
		if err != nil {
			return a, &template.StepError{Step: i + 1, Err: err}
		}
		p.Steps = append(p.Steps, s)
	}
	return q.deps.Executor.Execute(ctx, p, w.write)
}

// uploaded says whether the files of a COPY are there.
func (q *Queue) uploaded(j *job, s template.Step) error {
	ok, err := q.deps.Files.Has(j.Team, s.FilesHash)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("the files of COPY %.200s %.200s (hash %s) were not uploaded: %w", s.Args[0], s.Args[1], s.FilesHash, errdefs.ErrNotFound)
	}
	return nil
}

// blame names the step that an error is about.
func blame(err error) string {
	step, ok := errors.AsType[*template.StepError](err)
	if !ok {
		return ""
	}
	return stepName(step.Step)
}

func stepName(n int) string {
	switch {
	case n == 0:
		return template.StepBase
	case n < 0:
		return template.StepFinalize
	}
	return strconv.Itoa(n)
}

// reason is what the team is told. What a step says of itself is theirs; other
// faults are the server's, and the log has them under the build's id.
func reason(err error, reference string) string {
	step, ok := errors.AsType[*template.StepError](err)
	if ok && !errdefs.IsInternal(err) {
		return strings.TrimSpace(apierr.Text(step.Err))
	}
	return apierr.Describe(err, reference).Message
}
