package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/config"
)

// StockTemplate is a template that this binary builds from packages.
type StockTemplate struct {
	Name string
	// About says in a line what it is for.
	About string
}

// isStock says whether a name is that of a template which is built from packages.
func (s *session) isStock(name string) bool {
	return slices.ContainsFunc(s.Local.Stock, func(t StockTemplate) bool { return t.Name == name })
}

// stockList tells of the stock templates in a command's help.
func (s *session) stockList() string {
	var b strings.Builder
	width := 0
	for _, t := range s.Local.Stock {
		width = max(width, len(t.Name))
	}
	for _, t := range s.Local.Stock {
		fmt.Fprintf(&b, "\n  %-*s  %s", width, t.Name, t.About)
	}
	return b.String()
}

// completeStock offers the names that template build knows.
func (s *session) completeStock(_ *cobra.Command, got []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(got) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, t := range s.Local.Stock {
		out = append(out, cobra.CompletionWithDesc(t.Name, t.About))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// What became of a stock template.
const (
	stockBuilt  = "built"
	stockKept   = "kept"
	stockFailed = "failed"
)

// stockResult is one template in what template build --stock --json prints.
type stockResult struct {
	Name        string `json:"name"`
	Status      string `json:"status"` // built, kept, failed
	TemplateID  string `json:"templateID,omitempty"`
	RootfsBytes int64  `json:"rootfsBytes,omitempty"`
	DurationMS  int64  `json:"durationMs"`
	Error       string `json:"error,omitempty"`
}

// ofRecipes are flags that mean nothing where there is no recipe.
func ofRecipes() []string {
	return []string{"tag", "context", "build-arg", "start", "ready", "registry-user", "registry-password-file"}
}

// leftOut refuses flags that would have no effect, for a reason.
func leftOut(cmd *cobra.Command, reason string, names ...string) error {
	for _, name := range names {
		if f := cmd.Flags().Lookup(name); f != nil && f.Changed {
			return usage(fmt.Errorf("%s: leave out --%s", reason, name))
		}
	}
	return nil
}

// checkStock refuses what stock templates do not have.
func (s *session) checkStock(cmd *cobra.Command, b *buildFlags) error {
	names := append(ofRecipes(), "file", "from-image", "from-template", "from-tar", "memory", "disk", "cpus")
	if err := leftOut(cmd, "--stock builds stock templates as they are", names...); err != nil {
		return err
	}
	if b.name != "" && !s.isStock(b.name) {
		return usage(fmt.Errorf("there is no stock template %s; there are:%s", quoted(b.name), s.stockList()))
	}
	return nil
}

// checkName refuses a name that could mean the stock template or the recipe that
// lies here.
func (s *session) checkName(b *buildFlags) error {
	if b.fromTar != "" || b.file != "" || b.image != "" || b.template != "" || !s.isStock(b.name) {
		return nil
	}
	for _, f := range recipeFiles() {
		if _, err := os.Stat(f); err == nil {
			return usage(fmt.Errorf("%s is a stock template, and there is a %s here: say --stock, or --file %s", quoted(b.name), f, f))
		}
	}
	return nil
}

// buildStock builds the stock template that is named or, without a name, every
// one, one after the other; one that fails does not keep the others from being
// built.
func (s *session) buildStock(ctx context.Context, flags map[string]config.Flag, b *buildFlags) error {
	l, err := s.load(flags)
	if err != nil {
		return err
	}
	if s.Local.BuildTemplate == nil {
		return fmt.Errorf("template build: %w", errNotHere)
	}
	results := []stockResult{}
	var failed []error
	for _, t := range s.Local.Stock {
		if b.name != "" && t.Name != b.name {
			continue
		}
		r, err := s.buildStockOne(ctx, l.Config, t.Name, b.noCache)
		results = append(results, r)
		if err != nil {
			failed = append(failed, fmt.Errorf("template %s: %w", t.Name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	err = errors.Join(failed...)
	if b.asJSON {
		return errors.Join(s.printJSON(map[string]any{"templates": results}), err)
	}
	var rows [][]string
	for _, r := range results {
		size := ""
		if r.RootfsBytes > 0 {
			size = bytesText(r.RootfsBytes)
		}
		rows = append(rows, []string{r.Name, r.Status, size, short(time.Duration(r.DurationMS) * time.Millisecond)})
	}
	return errors.Join(s.table([]string{"TEMPLATE", "STATE", "SIZE", "TOOK"}, rows), err)
}

func (s *session) buildStockOne(ctx context.Context, cfg config.Config, name string, force bool) (stockResult, error) {
	r := stockResult{Name: name, Status: stockBuilt}
	begun := time.Now()
	p := s.newProgress()
	p.report(name+" template: look at what is there", "")
	t, err := s.Local.BuildTemplate(ctx, cfg, TemplateBuild{Name: name, Force: force}, p.report)
	p.end(err)
	r.DurationMS = time.Since(begun).Milliseconds()
	if err != nil {
		r.Status, r.Error = stockFailed, err.Error()
		return r, err
	}
	r.TemplateID, r.RootfsBytes = t.ID, t.RootfsBytes
	if t.UpdatedAt.Before(begun) {
		r.Status = stockKept
	}
	return r, nil
}

// stockDone words the end of the build of one template.
func (s *session) stockDone(b *buildFlags, t client.Template, begun time.Time) {
	if b.fromTar == "" && !t.UpdatedAt.IsZero() && t.UpdatedAt.Before(begun) {
		s.say("template %s of this version is there already: --no-cache builds it anew\n", quoted(b.name))
	}
	s.say("template %s is ready: caisson sandbox create NAME --template %s\n", quoted(b.name), quoted(b.name))
}
