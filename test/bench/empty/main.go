// Command empty is the benchmark's empty process: what starting and ending a Go program costs.
package main

func main() {}
