package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/config"
)

func (s *session) initCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Prepare the data directory: engine, agent, the base template",
		Long: `Prepare all that "caisson serve" needs. Steps that are done already are quick, so it can be run again at any time.

The base template is built from Debian packages and needs mmdebstrap and a Debian mirror.`,
		Example: "caisson init --data ./data",
		Args:    args(),
	}
	flags := s.configFlags(cmd, "log-level")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		l, err := s.load(flags())
		if err != nil {
			return err
		}
		if s.Local.Init == nil {
			return fmt.Errorf("init: %w", errNotHere)
		}
		p := s.newProgress()
		err = s.Local.Init(cmd.Context(), l.Config, p.report)
		p.end(err)
		if err != nil {
			return hint(err, "\"caisson doctor --data %s\" checks this machine", shellQuote(l.Config.Data))
		}
		s.say("ready: caisson serve --data %s\n", shellQuote(l.Config.Data))
		return nil
	}
	return cmd
}

func (s *session) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Print the configuration in force and where each value came from",
		Example: "caisson config\ncaisson config --json\ncaisson config --keys",
		Args:    args(),
	}
	flags := s.configFlags(cmd, "all")
	asJSON := cmd.Flags().BoolP("json", "j", false, "print JSON")
	keys := cmd.Flags().Bool("keys", false, "print every key with its meaning instead")
	cmd.RunE = func(*cobra.Command, []string) error {
		if *keys {
			return s.printKeys(*asJSON)
		}
		l, err := s.load(flags())
		if err != nil {
			return err
		}
		settings := l.Settings()
		if *asJSON {
			return s.printJSON(map[string]any{"file": l.File, "settings": settings})
		}
		var rows [][]string
		for _, v := range settings {
			rows = append(rows, []string{v.Key, v.Value, v.Source.String()})
		}
		return s.table([]string{"KEY", "VALUE", "FROM"}, rows)
	}
	return cmd
}

func (s *session) printKeys(asJSON bool) error {
	type key struct {
		Key     string `json:"key"`
		Env     string `json:"env"`
		Type    string `json:"type"`
		Default string `json:"default"`
		Doc     string `json:"doc"`
	}
	var all []key
	var rows [][]string
	for _, k := range config.Keys() {
		all = append(all, key{k.Name, k.Env, k.Type, k.Default, k.Doc})
		rows = append(rows, []string{k.Name, k.Type, k.Default, k.Doc})
	}
	if asJSON {
		return s.printJSON(all)
	}
	return s.table([]string{"KEY", "TYPE", "DEFAULT", "MEANING"}, rows)
}
