package aws

import (
	_ "embed"
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// InstanceType holds the network limits of an EC2 instance type.
type InstanceType struct {
	Name string
	// MaxInterfaces counts the ENIs of all network cards, the primary and the trunk included.
	MaxInterfaces int
	// IPv4PerInterface counts the primary address too.
	IPv4PerInterface int
	// TrunkCompatible types can carry a trunk ENI with up to MaxBranchInterfaces branch ENIs.
	TrunkCompatible     bool
	MaxBranchInterfaces int
	Hypervisor          string // nitro, xen or "" for bare metal
	BareMetal           bool
	DefaultNetworkCard  int
	// InterfacesPerNetworkCard has one entry per network card.
	InterfacesPerNetworkCard []int
}

//go:embed instance-types.csv
var instanceTypesCSV string

var instanceTypes = sync.OnceValues(func() (map[string]InstanceType, error) {
	return ParseInstanceTypes(strings.NewReader(instanceTypesCSV))
})

// LookupInstanceType finds a type such as "m5.large" in the table that this version was built with.
func LookupInstanceType(name string) (InstanceType, bool) {
	all, err := instanceTypes()
	if err != nil {
		return InstanceType{}, false // the embedded table is checked by a test
	}
	t, ok := all[name]
	t.InterfacesPerNetworkCard = slices.Clone(t.InterfacesPerNetworkCard)
	return t, ok
}

// InstanceTypeNames lists the types of the embedded table in alphabetical order.
func InstanceTypeNames() []string {
	all, err := instanceTypes()
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(all))
	for n := range all {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

const instanceTypeColumns = "instance_type,max_interfaces,ipv4_per_interface,trunk_compatible,max_branch_interfaces," +
	"hypervisor,bare_metal,default_network_card,interfaces_per_network_card"

// ParseInstanceTypes reads a table of instance types: CSV with the header of instance-types.csv.
func ParseInstanceTypes(r io.Reader) (map[string]InstanceType, error) {
	cr := csv.NewReader(r)
	cr.FieldsPerRecord = strings.Count(instanceTypeColumns, ",") + 1
	header, err := cr.Read()
	if err != nil {
		return nil, fmt.Errorf("read the header of the instance type table: %w", err)
	}
	if got := strings.Join(header, ","); got != instanceTypeColumns {
		return nil, fmt.Errorf("instance type table: header %q, want %q", got, instanceTypeColumns)
	}
	all := make(map[string]InstanceType)
	for {
		rec, err := cr.Read()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the instance type table: %w", err)
		}
		line, _ := cr.FieldPos(0)
		t, err := parseInstanceType(rec)
		if err != nil {
			return nil, fmt.Errorf("instance type table, line %d (%s): %w", line, rec[0], err)
		}
		if _, dup := all[t.Name]; dup {
			return nil, fmt.Errorf("instance type table, line %d: %s is listed twice", line, t.Name)
		}
		all[t.Name] = t
	}
}

func parseInstanceType(rec []string) (InstanceType, error) {
	t := InstanceType{Name: rec[0], Hypervisor: rec[5]}
	if t.Name == "" {
		return t, fmt.Errorf("no name")
	}
	for _, f := range []struct {
		to   *int
		from string
	}{
		{&t.MaxInterfaces, rec[1]}, {&t.IPv4PerInterface, rec[2]}, {&t.MaxBranchInterfaces, rec[4]}, {&t.DefaultNetworkCard, rec[7]},
	} {
		n, err := strconv.Atoi(f.from)
		if err != nil || n < 0 {
			return t, fmt.Errorf("%q is not a count", f.from)
		}
		*f.to = n
	}
	var err error
	if t.TrunkCompatible, err = strconv.ParseBool(rec[3]); err != nil {
		return t, fmt.Errorf("trunk_compatible: %w", err)
	}
	if t.BareMetal, err = strconv.ParseBool(rec[6]); err != nil {
		return t, fmt.Errorf("bare_metal: %w", err)
	}
	for s := range strings.FieldsSeq(rec[8]) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return t, fmt.Errorf("interfaces_per_network_card: %q is not a count", s)
		}
		t.InterfacesPerNetworkCard = append(t.InterfacesPerNetworkCard, n)
	}
	if t.DefaultNetworkCard >= len(t.InterfacesPerNetworkCard) {
		return t, fmt.Errorf("default network card %d of %d cards", t.DefaultNetworkCard, len(t.InterfacesPerNetworkCard))
	}
	return t, nil
}
