// Command caisson-agent is the in-sandbox agent: pid 1 of every sandbox.
package main

func main() {}
