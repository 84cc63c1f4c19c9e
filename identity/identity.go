// Package identity says who calls and what they may do: teams, API keys,
// principals, and the tokens derived from the installation seed.
package identity

// TeamID names a team: lower-case letters, digits and dashes.
type TeamID string

// DefaultTeam owns the first key of an installation and the stock templates.
const DefaultTeam TeamID = "default"

// Principal is an authenticated caller.
type Principal struct {
	Team TeamID
	// KeyID is the id of the API key used, or "system" for the server itself.
	KeyID string
}

// System acts for the server itself.
var System = Principal{KeyID: "system"} //nolint:gochecknoglobals // a constant in all but syntax
