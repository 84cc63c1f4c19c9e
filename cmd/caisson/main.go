// Command caisson is the server and the command line in one binary.
package main

func main() {}
