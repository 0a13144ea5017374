package ec2

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/lab/vpc"
)

// TestWhatIsLateIsShownAsItWas: descriptions and metadata, each for itself, switched while the region runs.
func TestWhatIsLateIsShownAsItWas(t *testing.T) {
	start := time.Now()
	now := start
	f := newFixture(t, Config{History: time.Minute, Now: func() time.Time { return now }})
	view := f.region.Metadata(f.instance)
	shows := func() (n int) {
		i, _ := view.Instance()
		for _, e := range i.Interfaces {
			n += len(e.Addresses)
		}
		return n
	}
	describes := func() (n int) {
		for _, e := range must(f.ec2.DescribeNetworkInterfaces(f.ctx, &ec2.DescribeNetworkInterfacesInput{}))(f).NetworkInterfaces {
			n += len(e.PrivateIpAddresses)
		}
		return n
	}
	i, _ := view.Instance()
	primary := i.Interfaces[0].ENIID
	now = start.Add(10 * time.Second)
	f.region.LateMetadata(f.instance, "", 5*time.Second)
	remove := f.region.Faults().Add(Fault{API: "DescribeNetworkInterfaces", Times: -1, Late: 5 * time.Second})
	assigned := must(f.ec2.AssignPrivateIpAddresses(f.ctx, &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: &primary, SecondaryPrivateIpAddressCount: ptr(int32(2))}))(f)
	if shows() != 1 || describes() != 1 {
		t.Errorf("at once: IMDS shows %d addresses, EC2 %d", shows(), describes())
	}
	now = start.Add(15 * time.Second)
	if shows() != 3 || describes() != 3 {
		t.Errorf("in time: IMDS shows %d addresses, EC2 %d", shows(), describes())
	}
	f.region.LateMetadata(f.instance, primary, 20*time.Second)
	if shows() != 3 {
		t.Error("IMDS went back to what was before")
	}
	must(f.ec2.UnassignPrivateIpAddresses(f.ctx, &ec2.UnassignPrivateIpAddressesInput{NetworkInterfaceId: &primary, PrivateIpAddresses: []string{*assigned.AssignedPrivateIpAddresses[0].PrivateIpAddress}}))(f)
	now = start.Add(30 * time.Second)
	remove()
	if shows() != 3 || describes() != 2 {
		t.Errorf("what is gone: IMDS shows %d addresses, EC2 %d", shows(), describes())
	}
	f.region.MetadataInTime(f.instance)
	if shows() != 2 {
		t.Error("IMDS is late though nobody wants it to be")
	}
}

func TestARepeatedCallTakesEffectTwice(t *testing.T) {
	var told atomic.Int32
	f := newFixture(t, Config{OnChange: func(*vpc.Topology) { told.Add(1) }})
	i, _ := f.region.Metadata(f.instance).Instance()
	in := &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: &i.Interfaces[0].ENIID, SecondaryPrivateIpAddressCount: ptr(int32(1))}
	f.region.Faults().Add(Fault{API: "AssignPrivateIpAddresses", Repeat: true})
	answer := must(f.ec2.AssignPrivateIpAddresses(f.ctx, in))(f).AssignedPrivateIpAddresses
	after, _ := f.region.Metadata(f.instance).Instance()
	all := after.Interfaces[0].Addresses
	if len(all) != 3 || len(answer) != 1 || slices.Index(addrStrings(all), *answer[0].PrivateIpAddress) != 2 {
		t.Errorf("%v after the answer %v", all, answer)
	}
	// What the first did has happened, and is told, though the second is refused.
	before := told.Load()
	in.SecondaryPrivateIpAddressCount = ptr(int32(4))
	f.region.Faults().Add(Fault{API: "AssignPrivateIpAddresses", Repeat: true})
	if _, err := f.ec2.AssignPrivateIpAddresses(f.ctx, in); aws.Code(err) != aws.CodeAddressLimitExceeded {
		t.Errorf("the second of two calls for 4 addresses, with 2 there and 9 allowed: %v", err)
	}
	if told.Load() == before {
		t.Error("nobody was told of the first one's addresses")
	}
	// A client token makes one of two.
	f.region.Faults().Add(Fault{API: "CreateNetworkInterface", Repeat: true})
	f.eni("interface")
	if n := len(must(f.ec2.DescribeNetworkInterfaces(f.ctx, &ec2.DescribeNetworkInterfacesInput{}))(f).NetworkInterfaces); n != 2 {
		t.Errorf("%d interfaces", n)
	}
}
