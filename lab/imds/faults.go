package imds

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Fault is something that goes wrong with requests.
type Fault struct {
	// Path is what their path begins with; empty: any. "/latest/api/token" is for tokens.
	Path string
	// After is how many matching requests pass first. Times is how many are hit then: 0 is one, negative is all.
	After, Times int

	// Delay comes first. It ends early when the client hangs up.
	Delay time.Duration
	// Status answers with that and with Body; 0 answers as usual, or with Body where that is not empty.
	Status int
	Body   string
	// Drop closes the connection instead of answering.
	Drop bool
}

// Faults is a script of failures, to be changed while the service runs. Its zero value is empty.
type Faults struct {
	mu     sync.Mutex
	active []*scripted
}

type scripted struct {
	Fault
	seen, hit int
}

// Add appends a fault. Where several match a request, the first that is due hits.
func (f *Faults) Add(fault Fault) {
	if fault.Times == 0 {
		fault.Times = 1
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active = append(f.active, &scripted{Fault: fault})
}

// Clear takes all faults away.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active = nil
}

func (f *Faults) next(path string) (Fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var due *scripted
	for _, s := range f.active {
		if !strings.HasPrefix(path, s.Path) {
			continue
		}
		s.seen++
		if due == nil && s.seen > s.After && (s.Times < 0 || s.hit < s.Times) {
			due = s
		}
	}
	if due == nil {
		return Fault{}, false
	}
	due.hit++
	return due.Fault, true
}

// Handler serves what next serves, unless a fault hits.
func (f *Faults) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		fault, hit := f.next(req.URL.Path)
		if !hit {
			next.ServeHTTP(w, req)
			return
		}
		if fault.Delay > 0 {
			t := time.NewTimer(fault.Delay)
			defer t.Stop()
			select {
			case <-t.C:
			case <-req.Context().Done():
			}
		}
		switch {
		case fault.Drop || req.Context().Err() != nil:
			panic(http.ErrAbortHandler) // net/http's way to close the connection without an answer
		case fault.Status != 0 || fault.Body != "":
			if fault.Status != 0 {
				w.WriteHeader(fault.Status)
			}
			_, _ = io.WriteString(w, fault.Body) // the client went away; nobody is left to tell
		default:
			next.ServeHTTP(w, req)
		}
	})
}
