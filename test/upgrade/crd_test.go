package upgrade

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// definition is what counts of a CustomResourceDefinition.
type definition struct {
	Metadata struct{ Name string }
	Spec     struct {
		Scope    string
		Names    struct{ Kind string }
		Versions []struct {
			Name         string
			Served       bool
			Subresources struct{ Status map[string]any }
			Schema       struct{ OpenAPIV3Schema schema }
		}
	}
}

// schema is what counts of one in OpenAPI v3.
type schema struct {
	Type, Format, Pattern string
	Required              []string
	Enum                  []any
	Minimum, Maximum      *float64
	MaxItems, MaxLength   *float64
	Properties            map[string]schema
	Items                 *schema
	Keys                  []string                `json:"x-kubernetes-list-map-keys"`
	Validations           []struct{ Rule string } `json:"x-kubernetes-validations"`
}

func parseCRD(t *testing.T, path string) (c definition) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestObjectsOfThePreviousReleaseAreValidAndReadable: agents and controllers of both releases write the same objects for a
// while. So nothing of a schema goes, becomes another type or gets narrower.
func TestObjectsOfThePreviousReleaseAreValidAndReadable(t *testing.T) {
	all, err := filepath.Glob(filepath.Join("testdata", "previous", "crd", "*.yaml"))
	if err != nil || len(all) < 4 {
		t.Fatalf("%q, %v", all, err)
	}
	for _, path := range all {
		was, is := parseCRD(t, path), parseCRD(t, filepath.Join("..", "..", "config", "crd", filepath.Base(path)))
		if is.Metadata.Name != was.Metadata.Name || is.Spec.Scope != was.Spec.Scope || is.Spec.Names.Kind != was.Spec.Names.Kind {
			t.Errorf("%s is %s %s now", was.Metadata.Name, is.Metadata.Name, is.Spec.Names.Kind)
		}
		for _, old := range was.Spec.Versions {
			found := false
			for _, v := range is.Spec.Versions {
				if v.Name != old.Name {
					continue
				}
				found = true
				if !v.Served || (v.Subresources.Status != nil) != (old.Subresources.Status != nil) {
					t.Errorf("%s: version %s is not served, or its status is another resource than before", was.Metadata.Name, v.Name)
				}
				for _, wrong := range narrower(was.Spec.Names.Kind, old.Schema.OpenAPIV3Schema, v.Schema.OpenAPIV3Schema) {
					t.Error(wrong)
				}
			}
			if !found {
				t.Errorf("%s: version %s is gone", was.Metadata.Name, old.Name)
			}
		}
	}
}

// narrower says what the previous schema lets through and this one does not, or means something else by.
func narrower(at string, was, is schema) (out []string) {
	say := func(format string, args ...any) { out = append(out, at+": "+fmt.Sprintf(format, args...)) }
	if is.Type != was.Type || is.Format != was.Format {
		say("is a %s %s, was a %s %s", is.Type, is.Format, was.Type, was.Format)
	}
	for _, r := range is.Required {
		if !slices.Contains(was.Required, r) {
			say("%s is required now", r)
		}
	}
	if len(is.Enum) > 0 {
		if len(was.Enum) == 0 {
			say("has an enum now")
		}
		for _, v := range was.Enum {
			if !slices.Contains(is.Enum, v) {
				say("%v is not accepted any more", v)
			}
		}
	}
	if is.Minimum != nil && (was.Minimum == nil || *is.Minimum > *was.Minimum) {
		say("minimum is %v now", *is.Minimum)
	}
	for _, most := range []struct {
		name    string
		was, is *float64
	}{{"maximum", was.Maximum, is.Maximum}, {"maxItems", was.MaxItems, is.MaxItems}, {"maxLength", was.MaxLength, is.MaxLength}} {
		if most.is != nil && (most.was == nil || *most.is < *most.was) {
			say("%s is %v now", most.name, *most.is)
		}
	}
	if is.Pattern != was.Pattern {
		say("its pattern is %q, was %q", is.Pattern, was.Pattern)
	}
	for _, v := range is.Validations {
		if !slices.Contains(was.Validations, v) {
			say("has the rule %s now", v.Rule)
		}
	}
	if !slices.Equal(was.Keys, is.Keys) {
		say("its members' keys are %v, were %v", is.Keys, was.Keys)
	}
	for name, p := range was.Properties {
		now, ok := is.Properties[name]
		if !ok {
			say("%s is gone", name)
			continue
		}
		out = append(out, narrower(at+"."+name, p, now)...)
	}
	if was.Items != nil && is.Items != nil {
		out = append(out, narrower(at+"[]", *was.Items, *is.Items)...)
	}
	return out
}

// TestANarrowerSchemaIsSeen: the comparison itself.
func TestANarrowerSchemaIsSeen(t *testing.T) {
	five, six := 5.0, 6.0
	n := 1.0
	string_ := schema{Type: "string"}
	was := schema{Type: "object", Properties: map[string]schema{"a": string_, "b": {Type: "integer", Minimum: &five, Maximum: &six}}}
	change := func(f func(*schema)) schema {
		c := was
		c.Properties = maps.Clone(was.Properties)
		f(&c)
		return c
	}
	for what, is := range map[string]schema{
		"a is gone":     change(func(c *schema) { delete(c.Properties, "a") }),
		"a is required": change(func(c *schema) { c.Required = []string{"a"} }),
		"K.a: is a integer": change(func(c *schema) {
			c.Properties["a"] = schema{Type: "integer"}
		}),
		"K.a: maxLength": change(func(c *schema) {
			c.Properties["a"] = schema{Type: "string", MaxLength: &n}
		}),
		"K.b: minimum": change(func(c *schema) {
			c.Properties["b"] = schema{Type: "integer", Minimum: &six, Maximum: &six}
		}),
		"K.b: maximum": change(func(c *schema) {
			c.Properties["b"] = schema{Type: "integer", Minimum: &five, Maximum: &five}
		}),
	} {
		if got := narrower("K", was, is); len(got) != 1 || !strings.Contains(got[0], what) {
			t.Errorf("%q, want %q", got, what)
		}
	}
	wider := change(func(c *schema) { c.Properties["c"] = string_ })
	if got := narrower("K", was, wider); len(got) > 0 {
		t.Errorf("more is no less: %q", got)
	}
}
