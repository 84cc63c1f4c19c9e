package egress

import (
	"fmt"
	"strings"
)

// Explanation tells a user which rule decided a destination.
type Explanation struct {
	Decision
	// Host is the canonical form of what was asked: a name or an address.
	Host string
	Port uint16
	// By is the deciding rule, or nil when the default or a built-in decided.
	By *Rule
	// Hint is the rule that would allow it, or "".
	Hint string
}

// String is one line for a terminal.
func (e Explanation) String() string {
	s := fmt.Sprintf("%s %s:%d: %s", e.Verdict, e.Host, e.Port, e.Reason)
	if e.By != nil {
		s += ": " + summary(e.By.Hosts)
	}
	return s
}

func summary(hosts []string) string {
	const most = 5
	if len(hosts) == 0 {
		return "everything"
	}
	if len(hosts) > most {
		return strings.Join(hosts[:most], " ") + fmt.Sprintf(" and %d more", len(hosts)-most)
	}
	return strings.Join(hosts, " ")
}

// Explain says what p does with a destination without touching the network: a
// name is judged by the rules for names, because its address is not known here.
func Explain(p Policy, host string, port uint16) (Explanation, error) {
	m, err := Compile(p)
	if err != nil {
		return Explanation{}, err
	}
	name, addr, err := ParseHost(host)
	if err != nil {
		return Explanation{}, invalid("host", host, err)
	}
	e := Explanation{Host: name, Port: port}
	if addr.IsValid() {
		e.Host = addr.String()
		if reason := Special(addr); reason != "" {
			e.Decision = Decision{Verdict: Deny, Rule: -1, Reason: reason + ", denied unless the server's egress.allow_private names it"}
			return e, nil
		}
	}
	e.Decision = m.Decide(Request{Host: name, Addr: addr, Port: port})
	if e.Rule >= 0 {
		e.By = &p.Rules[e.Rule]
	}
	if e.Verdict == Deny {
		e.Hint = Hint(e.Host)
	}
	return e, nil
}

// Hint is the option that would allow a host, as the command line takes it.
func Hint(host string) string { return "--allow " + host }
