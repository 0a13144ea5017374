package introspect

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
)

// Names of the views.
const (
	ViewENIs         = "enis"
	ViewPods         = "pods"
	ViewNetworkUtils = "networkutils-env-settings"
	ViewIPAMD        = "ipamd-env-settings"
)

// ErrNoView names a view that isn't there.
type ErrNoView struct {
	Name  string
	Known []string
}

func (e ErrNoView) Error() string {
	return fmt.Sprintf("there is no view %q; there are %q", e.Name, e.Known)
}

// Views are made when they are asked for.
type Views map[string]func() any

// Names are sorted.
func (v Views) Names() []string { return slices.Sorted(maps.Keys(v)) }

// JSON is a view as text.
func (v Views) JSON(name string) ([]byte, error) {
	view, ok := v[name]
	if !ok {
		return nil, ErrNoView{name, v.Names()}
	}
	b, err := json.Marshal(view())
	if err != nil {
		return nil, fmt.Errorf("encode the view %s: %w", name, err)
	}
	return b, nil
}

// Handler serves each view at /v1/<name>, and at / the list of their paths.
func (v Views) Handler() http.Handler {
	mux := http.NewServeMux()
	for name := range v {
		mux.HandleFunc("GET /v1/"+name, func(w http.ResponseWriter, _ *http.Request) {
			b, err := v.JSON(name)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(b) // the reader may have gone: that is its own affair
		})
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		for _, name := range v.Names() {
			fmt.Fprintln(w, "/v1/"+name)
		}
	})
	return mux
}
