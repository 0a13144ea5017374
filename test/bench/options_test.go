package main

import (
	"errors"
	"flag"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/branchline-cni/branchline/test/bench/contender"
)

func TestTheCommandLineIsRead(t *testing.T) {
	o, err := parseOptions([]string{"-rounds", "3", "-pods", "5", "-concurrency", "1, 4", "-only", "aws-cni,bare loop, aws-cni branch",
		"-growth", "0", "-reliability", "100", "-branch", "vm", "-json", "x.json"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.rounds != 3 || o.pods != 5 || !slices.Equal(o.concurrency, []int{1, 4}) || o.growth != 0 || o.reliability != 100 || o.branch != branchVM || o.json != "x.json" {
		t.Errorf("%+v", o)
	}
	if got := o.among(native); !slices.Equal(got, []string{contender.Ours, contender.Bare}) {
		t.Errorf("of the native ones: %q", got)
	}
	if got := o.among(branched); !slices.Equal(got, []string{contender.OursBranch}) {
		t.Errorf("of the branched ones: %q", got)
	}
}

func TestWithoutFlagsEverythingIsMeasured(t *testing.T) {
	o, err := parseOptions(nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(o.concurrency, []int{1, 8, 32}) || o.growth != 700 || o.reliability == 0 || o.branch != branchAuto || !slices.Equal(o.among(native), native) {
		t.Errorf("%+v", o)
	}
}

func TestWhatCannotBeMeasuredIsRefusedByName(t *testing.T) {
	for _, tc := range []struct{ args, names string }{
		{"-rounds 0", "-rounds"},
		{"-pods 1001", "-pods"},
		{"-vm-pods 121", "-vm-pods"},
		{"-concurrency 1,x", "-concurrency"},
		{"-concurrency 8,8", "-concurrency"},
		{"-vm-concurrency 0", "-vm-concurrency"},
		{"-concurrency 0", "-concurrency"},
		{"-only nobody", "nobody"},
		{"-branch maybe", "-branch"},
		{"-inside", "-bins"},
		{"-growth -1", "-growth"},
		{"now", "now"},
		{"-no-such-flag", "no-such-flag"},
	} {
		var told strings.Builder
		_, err := parseOptions(strings.Fields(tc.args), &told)
		if err == nil || !strings.Contains(told.String(), tc.names) {
			t.Errorf("%s: %v, told %q", tc.args, err, told.String())
		}
	}
	if _, err := parseOptions([]string{"-h"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
}
