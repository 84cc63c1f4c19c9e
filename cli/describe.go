package cli

import (
	"strconv"
	"time"

	"github.com/caisson-dev/caisson/client"
)

// description is a sandbox as --json prints it: the members that Nexus users
// know, then what only we have. Tokens are left out.
type description struct {
	SandboxID    string  `json:"sandbox_id"`
	Name         string  `json:"name"`
	Provider     string  `json:"provider"`
	TemplateID   string  `json:"template_id"`
	Status       string  `json:"status"`
	CreatedAt    string  `json:"created_at"`
	LastActiveAt string  `json:"last_active_at"`
	PausedAt     *string `json:"paused_at"`
	StoppedAt    *string `json:"stopped_at"`
	TTLMinutes   int     `json:"ttl_minutes"`
	ExpiresAt    *string `json:"expires_at"`
	Uptime       float64 `json:"uptime_seconds"`

	State     client.State        `json:"state"`
	Saved     *client.Saved       `json:"saved,omitempty"`
	Lifecycle client.Lifecycle    `json:"lifecycle"`
	Reason    string              `json:"reason,omitempty"`
	Template  string              `json:"template"`
	BuildID   string              `json:"build_id,omitempty"`
	Domain    string              `json:"domain,omitempty"`
	Resources client.Resources    `json:"resources"`
	Egress    client.EgressPolicy `json:"egress"`
	Metadata  map[string]string   `json:"metadata"`
}

func describe(sb client.Sandbox, now time.Time) description {
	d := description{
		SandboxID: sb.ID, Name: sb.Name, Provider: sb.Provider, TemplateID: sb.Template, Status: status(sb),
		CreatedAt: stamp(sb.CreatedAt), LastActiveAt: stamp(sb.StartedAt), TTLMinutes: ttlOf(sb),
		State: sb.State, Reason: sb.Reason, Template: sb.TemplateName, BuildID: sb.BuildID, Domain: sb.Domain,
		Saved: sb.Saved, Lifecycle: sb.Lifecycle,
		Resources: sb.Resources, Egress: sb.Egress, Metadata: map[string]string{},
	}
	if sb.StartedAt.IsZero() {
		d.LastActiveAt = d.CreatedAt
	}
	end := now
	switch {
	case !sb.EndedAt.IsZero():
		end = sb.EndedAt
		d.StoppedAt = new(stamp(sb.EndedAt))
	case !sb.PausedAt.IsZero():
		end = sb.PausedAt
		d.PausedAt = new(stamp(sb.PausedAt))
	case !sb.EndsAt.IsZero():
		d.ExpiresAt = new(stamp(sb.EndsAt))
	}
	d.Uptime = max(0, end.Sub(sb.CreatedAt).Round(time.Millisecond).Seconds())
	for k, v := range sb.Metadata {
		d.Metadata[k] = v
	}
	return d
}

// ttlOf is what --ttl was, else the life that was asked for.
func ttlOf(sb client.Sandbox) int {
	if n := labelledTTL(sb, 0); n > 0 {
		return n
	}
	if sb.EndsAt.IsZero() || sb.StartedAt.IsZero() {
		return 0
	}
	return int(sb.EndsAt.Sub(sb.StartedAt).Round(time.Minute) / time.Minute)
}

// labelledTTL is what --ttl was in minutes, or otherwise where no label tells.
func labelledTTL(sb client.Sandbox, otherwise int) int {
	if n, err := strconv.Atoi(sb.Metadata[ttlLabel]); err == nil && n > 0 {
		return n
	}
	return otherwise
}

// status is the word that Nexus uses for a state.
func status(sb client.Sandbox) string {
	switch sb.State {
	case client.Pending:
		return "creating"
	case client.Running, client.Pausing, client.Resuming:
		return "active"
	case client.Paused:
		return "paused"
	case client.Killing:
		return "stopping"
	case client.Failed:
		return "error"
	}
	return "stopped"
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// savedText says what a paused sandbox keeps.
func savedText(a *client.Saved) string {
	switch {
	case a == nil:
		return ""
	case a.Kind == client.SavedFiles:
		return "files, " + bytesText(a.SizeBytes)
	}
	return "memory and files, " + bytesText(a.SizeBytes)
}

// lifecycleText says what happens at the end of a sandbox's time; it is empty
// where that is nothing special.
func lifecycleText(l client.Lifecycle) string {
	text := ""
	switch {
	case l.OnTimeout == client.PauseOnTimeout && l.FilesOnly:
		text = "pause, files only"
	case l.OnTimeout == client.PauseOnTimeout:
		text = "pause"
	case l.AutoResume:
		text = "kill"
	}
	if l.AutoResume {
		text += "; once paused, traffic resumes it"
	}
	return text
}
