package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/branchline-cni/branchline/test/bench/cost/sim"
)

// The scenarios.
const (
	burst = "burst"
	churn = "churn"
	waves = "waves"
)

// document is everything that one run has counted.
type document struct {
	Hours int   `json:"hours"`
	Rate  int   `json:"burst_pods_per_second"`
	Rows  []row `json:"rows"`
}

type row struct {
	Scenario string `json:"scenario"`
	Type     string `json:"instance_type"`
	Setting  string `json:"setting"`
	Agent    string `json:"agent"`
	sim.Result
}

func (d document) print(w io.Writer) error {
	var b strings.Builder
	for _, s := range []struct{ name, title string }{
		{burst, fmt.Sprintf("From no pod to 110, or as many as the type has addresses for; %d ADDs a second. Calls until 10 minutes later", d.Rate)},
		{churn, fmt.Sprintf("%d pods that stay, and 10 a minute at random that live a minute on average; %d hours", stay, d.Hours)},
		{waves, fmt.Sprintf("%d pods that stay, and 10 at the start of each minute that live half a minute; %d hours", stay, d.Hours)},
	} {
		fmt.Fprintf(&b, "\n%s\n", s.title)
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(t, "type\tsetting\t\tpods\tcalls\tmutating\tper pod\tlast pod s\tworst wait s\tmean wait s\tfailed ADDs\tpeak addresses\tat the end\tpeak ENIs\tidle on average\t\n")
		for _, r := range d.Rows {
			if r.Scenario != s.name {
				continue
			}
			last := "-"
			if s.name == burst {
				last = fmt.Sprintf("%.1f", r.LastSeconds)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%.3f\t%s\t%.1f\t%.2f\t%d\t%d\t%d\t%d\t%.1f\t\n", r.Type, r.Setting, r.Agent,
				r.Pods, r.All, r.Mutating, r.PerPod, last, r.WorstSeconds, r.MeanSeconds, r.FailedADDs, r.PeakAddresses, r.EndAddresses, r.PeakENIs, r.MeanIdle)
		}
		t.Flush()
	}
	fmt.Fprintf(&b, "\nCalls by API\n")
	for _, r := range d.Rows {
		var calls []string
		for _, name := range slices.Sorted(maps.Keys(r.Calls)) {
			calls = append(calls, fmt.Sprintf("%s %d", name, r.Calls[name]))
		}
		if len(calls) == 0 {
			calls = []string{"none"}
		}
		fmt.Fprintf(&b, "  %s, %s, %s, %s: %s\n", r.Scenario, r.Type, r.Setting, r.Agent, strings.Join(calls, ", "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
