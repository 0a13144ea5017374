package endstate

import (
	"fmt"
	"slices"
	"strings"
)

// Outputs are what programs printed. All but Files are JSON.
type Outputs struct {
	// By "aws ec2 describe-...".
	Instances, Interfaces, Groups, Rules, Associations, Permissions []byte
	// Objects is one List of objects of several kinds, by "kubectl get ... -A -o json".
	Objects []byte
	Hosts   []Host
}

// Host is what programs printed on one instance.
type Host struct {
	// Name is the instance's Name tag.
	Name string
	// By "ip -j": "link" (with -d), "rule", "route show table all", "neigh show nud permanent".
	Links, Rules, Routes, Neighbours []byte
	// Files has a line for each file: type, mode, owner and path.
	Files []byte
}

// Text is the state as lines in sections. Equal states give equal texts.
func Text(o Outputs) (string, error) {
	s, err := read(o)
	if err != nil {
		return "", err
	}
	n := s.name()
	var b strings.Builder
	section := func(title string, lines []string) {
		slices.Sort(lines)
		fmt.Fprintf(&b, "== %s\n", title)
		for _, l := range lines {
			fmt.Fprintln(&b, l)
		}
	}
	section("EC2: instances", s.instanceLines())
	section("EC2: network interfaces", s.interfaceLines(n))
	section("EC2: trunk associations", s.associationLines(n))
	section("EC2: network interface permissions", s.permissionLines(n))
	section("EC2: security groups", s.groupLines(n))
	section("API server", s.objectLines(n))
	var pods []string
	for _, h := range s.hosts {
		lines, wiring := h.lines(n)
		section("host "+h.name, lines)
		pods = append(pods, wiring...)
	}
	// Which node the scheduler chose for a pod is chance: the pods' own lines stand apart, without the node's name.
	section("wiring of pods, on whichever node", pods)
	return b.String(), nil
}

// fields joins the parts that are not empty.
func fields(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), " ")
}
