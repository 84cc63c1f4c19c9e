package builder

// SetToken makes the tokens of boxes known to a test.
func (b *Builder) SetToken(f func() string) { b.token = f }
