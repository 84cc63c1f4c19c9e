package provider

import "errors"

// ErrPortClosed says that the box runs and nothing listens on the port.
var ErrPortClosed = errors.New("port is not open in the sandbox")

// ErrUnenforceable says that a requested limit or control cannot be enforced
// on this host; the text around it names which and what to do.
var ErrUnenforceable = errors.New("cannot be enforced on this host")
