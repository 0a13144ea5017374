package cloud

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestTagsThatEC2DoesNotTakeKeepNoENIFromBeingMade(t *testing.T) {
	tags := map[string]string{"team": "shop", "": "x", "AWS:x": "y", "aws:y": "z", strings.Repeat("k", 129): "", "long": strings.Repeat("é", 257), "just": strings.Repeat("é", 256)}
	want := []string{"", "AWS:x", "aws:y", strings.Repeat("k", 129), "long"}
	if got := UnusableTags(tags); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	c := &Client{ClusterName: "demo"}
	set := map[string]string{}
	for _, tag := range c.tags(tags, map[string]string{tagClaim: "c", "team": "ours"})[0].Tags {
		set[*tag.Key] = *tag.Value
	}
	if len(set) != 5 || set["team"] != "ours" || set["just"] == "" || set[tagOwner] != owner {
		t.Errorf("%v", set)
	}
	many := map[string]string{}
	for i := range 60 {
		many[fmt.Sprint("k", i)] = ""
	}
	if n := len(c.tags(many, map[string]string{tagClaim: "c"})[0].Tags); n != mostTags+3 {
		t.Errorf("%d tags", n)
	}
	if n := len(c.tags(nil, nil)[0].Tags); n != 2 {
		t.Errorf("%d tags", n)
	}
}
