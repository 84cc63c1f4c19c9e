package control

// Client is the server's end of the channel.
type Client struct{}
