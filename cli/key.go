package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/config"
)

func (s *session) keyCommand() *cobra.Command {
	var team string
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Create, list and revoke API keys",
		Long:  `Create, list and revoke API keys of your key's team, over the API. With --team TEAM the data directory of this machine is changed instead, so that the first key of another team can be made.`,
		Args:  noSubcommand, RunE: showHelp,
	}
	cmd.PersistentFlags().StringVar(&team, "team", "", "act on this team in the local data directory")
	cmd.AddCommand(s.keyCreate(&team), s.keyList(&team), s.keyRevoke(&team))
	return cmd
}

// local returns the configuration for commands on the data directory.
func (s *session) local(have bool) (config.Config, error) {
	l, err := s.load(nil)
	if err != nil {
		return config.Config{}, err
	}
	if !have {
		return config.Config{}, fmt.Errorf("--team: %w", errNotHere)
	}
	return l.Config, nil
}

func (s *session) keyCreate(team *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "create <name>",
		Short:   "Make an API key and print it, this once",
		Example: "caisson key create ci > key\ncaisson key create first --team research --data ./data",
		Args:    args("<name>"),
		RunE: func(cmd *cobra.Command, got []string) error {
			k, err := s.createKey(cmd.Context(), *team, got[0])
			if err != nil {
				return err
			}
			if asJSON {
				return s.printJSON(k)
			}
			if _, err := fmt.Fprintln(s.Out, k.Key); err != nil {
				return fmt.Errorf("print the key: %w: revoke %s and make another", err, k.ID)
			}
			s.say("key %s (id %s) of team %s; it is not shown again\n", quoted(k.Name), k.ID, k.Team)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

func (s *session) createKey(ctx context.Context, team, name string) (client.Key, error) {
	if team != "" {
		cfg, err := s.local(s.Local.CreateKey != nil)
		if err != nil {
			return client.Key{}, err
		}
		return s.Local.CreateKey(ctx, cfg, team, name)
	}
	c, err := s.connect()
	if err != nil {
		return client.Key{}, err
	}
	k, err := c.CreateKey(ctx, name)
	return k, c.explain(err)
}

func (s *session) keyList(team *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List API keys, without the keys themselves",
		Example: "caisson key list",
		Args:    args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys, err := s.listKeys(cmd.Context(), *team)
			if err != nil {
				return err
			}
			if asJSON {
				return s.printJSON(map[string]any{"keys": keys})
			}
			var rows [][]string
			for _, k := range keys {
				rows = append(rows, []string{k.ID, k.Name, k.Team, k.Mask, clock(k.CreatedAt), clock(k.LastUsedAt)})
			}
			return s.table([]string{"ID", "NAME", "TEAM", "KEY", "CREATED", "LAST USED"}, rows)
		},
	}
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

func (s *session) listKeys(ctx context.Context, team string) ([]client.Key, error) {
	if team != "" {
		cfg, err := s.local(s.Local.ListKeys != nil)
		if err != nil {
			return nil, err
		}
		return s.Local.ListKeys(ctx, cfg, team)
	}
	c, err := s.connect()
	if err != nil {
		return nil, err
	}
	keys, err := c.Keys(ctx)
	return keys, c.explain(err)
}

func (s *session) keyRevoke(team *string) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke <id>",
		Aliases: []string{"rm"},
		Short:   "Make an API key worthless at once",
		Example: "caisson key revoke k1a2b3",
		Args:    args("<id>"),
		RunE: func(cmd *cobra.Command, got []string) error {
			if err := s.revokeKey(cmd.Context(), *team, got[0]); err != nil {
				return err
			}
			s.say("revoked %s\n", quoted(got[0]))
			return nil
		},
	}
}

func (s *session) revokeKey(ctx context.Context, team, id string) error {
	if team != "" {
		cfg, err := s.local(s.Local.RevokeKey != nil)
		if err != nil {
			return err
		}
		return s.Local.RevokeKey(ctx, cfg, team, id)
	}
	c, err := s.connect()
	if err != nil {
		return err
	}
	return c.explain(c.RevokeKey(ctx, id))
}
