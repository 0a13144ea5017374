// Command cost counts what a node asks of EC2, by playing pods that come and go in virtual time: this agent's decisions
// beside a model of the agent that EKS ships. It takes no root, no AWS and a second. docs/benchmarks.md says how to read it.
//
//	go run ./test/bench/cost [-hours N] [-rate N] [-json FILE]
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/branchline-cni/branchline/test/bench/cost/sim"
)

func main() {
	hours := flag.Int("hours", 4, "hours of each churn")
	rate := flag.Int("rate", 10, "pods that a burst starts in a second")
	out := flag.String("json", "", "file for the results as JSON (- for stdout, in the place of the tables)")
	flag.Parse()
	err := errors.New("no arguments are taken, and -hours and -rate are 1 or more")
	if flag.NArg() == 0 && *hours > 0 && *rate > 0 {
		err = run(*hours, *rate, *out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cost:", err)
		os.Exit(1)
	}
}

func run(hours, rate int, out string) error {
	doc, err := measure(hours, rate)
	if err != nil {
		return err
	}
	if out == "-" {
		return writeJSON(os.Stdout, doc)
	}
	if out != "" {
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return fmt.Errorf("write the results: %w", err)
		}
		f, err := os.Create(out)
		if err != nil {
			return fmt.Errorf("write the results: %w", err)
		}
		if err := errors.Join(writeJSON(f, doc), f.Close()); err != nil {
			return err
		}
	}
	return doc.print(os.Stdout)
}

func writeJSON(w io.Writer, doc document) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(doc); err != nil {
		return fmt.Errorf("write the results as JSON: %w", err)
	}
	return nil
}

// The pods of each scenario.
const (
	most      = 110
	stay      = 5
	perMinute = 10
	life      = time.Minute
	waveLife  = 30 * time.Second
)

// agents are who is compared, in this order.
var agents = []struct {
	name string
	make sim.Contender
}{{"ours", sim.NewOurs}, {"ours (keep 0)", sim.NewOursKeepingNothing}, {"today's", sim.NewTodays}}

func measure(hours, rate int) (document, error) {
	d := document{Hours: hours, Rate: rate}
	for _, instance := range []string{"m5.large", "m5.4xlarge"} {
		for _, named := range sim.Usual() {
			s, err := sim.NewSetting(instance, named)
			if err != nil {
				return d, err
			}
			pods := min(most, s.Capacity())
			length := time.Duration(hours) * time.Hour
			for _, a := range agents {
				d.Rows = append(d.Rows,
					row{burst, instance, named.Name, a.name, sim.Burst(s, a.make, pods, rate)},
					row{churn, instance, named.Name, a.name, sim.Churn(s, a.make, stay, perMinute, life, length)},
					row{waves, instance, named.Name, a.name, sim.Waves(s, a.make, stay, perMinute, waveLife, length)})
			}
		}
	}
	return d, nil
}
