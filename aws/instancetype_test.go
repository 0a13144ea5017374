package aws

import (
	"slices"
	"strings"
	"testing"
)

func TestTheEmbeddedTableIsWhole(t *testing.T) {
	names := InstanceTypeNames()
	if len(names) < 1000 {
		t.Fatalf("%d types", len(names))
	}
	for _, n := range names {
		it, ok := LookupInstanceType(n)
		sum := 0
		for _, c := range it.InterfacesPerNetworkCard {
			sum += c
		}
		if !ok || it.MaxInterfaces < 1 || it.IPv4PerInterface < 1 || sum < it.MaxInterfaces || (it.TrunkCompatible && it.MaxBranchInterfaces < 1) {
			t.Errorf("%+v", it)
		}
	}
	m5, _ := LookupInstanceType("m5.large")
	if m5.MaxInterfaces != 3 || m5.IPv4PerInterface != 10 || !m5.TrunkCompatible || m5.MaxBranchInterfaces != 9 {
		t.Errorf("%+v", m5)
	}
	if t3, _ := LookupInstanceType("t3.medium"); t3.TrunkCompatible {
		t.Errorf("%+v", t3)
	}
	if _, ok := LookupInstanceType("x9.huge"); ok {
		t.Error("x9.huge exists")
	}
}

func TestATableWithErrorsNamesTheLine(t *testing.T) {
	for _, row := range []string{"a,x,2,true,3,nitro,false,0,2", "a,1,2,maybe,3,nitro,false,0,2", "a,1,2,true,3,nitro,false,1,2", "a,1,2,true,3,nitro,false,0,x",
		",1,2,true,3,nitro,false,0,2", "a,1,2,true,3,nitro,false,0,2\na,1,2,true,3,nitro,false,0,2"} {
		_, err := ParseInstanceTypes(strings.NewReader(instanceTypeColumns + "\n" + row + "\n"))
		if err == nil || !strings.Contains(err.Error(), "line") {
			t.Errorf("%s: %v", row, err)
		}
	}
	if _, err := ParseInstanceTypes(strings.NewReader("a,b\n")); err == nil {
		t.Error("a strange header was accepted")
	}
}

func FuzzInstanceTypes(f *testing.F) {
	f.Add(instanceTypeColumns + "\nm5.large,3,10,true,9,nitro,false,0,3\n")
	f.Add(instanceTypeColumns + "\n\"")
	f.Fuzz(func(t *testing.T, s string) {
		all, err := ParseInstanceTypes(strings.NewReader(s))
		for _, it := range all {
			if err == nil && (it.Name == "" || it.DefaultNetworkCard >= len(it.InterfacesPerNetworkCard) || slices.Min(it.InterfacesPerNetworkCard) < 0) {
				t.Fatalf("%+v", it)
			}
		}
	})
}
