package store

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

// TestALaterReleasesFileIsReadWhereItSaysSo: what it has more is passed over. One that doesn't say so is kept aside.
func TestALaterReleasesFileIsReadWhereItSaysSo(t *testing.T) {
	body := `{"allocations":[{"containerID":"c","ifName":"eth0","pod":{"namespace":"default","name":"web","uid":"u","class":"new"},"since":"2026-11-23T07:00:00Z","regular":{"address":"10.0.0.1","eniID":"eni-1","device":0,"routeTable":254}}],"cooling":[],"released":[],"retiring":[],"kept":{"of":"a later release"}}`
	sum := sha256.Sum256([]byte(body))
	for head, readable := range map[string]bool{
		fmt.Sprintf(`"version":%d`, fileVersion):                              true,
		fmt.Sprintf(`"version":%d,"oldest":%d`, fileVersion+1, fileVersion):   true,
		fmt.Sprintf(`"version":%d,"oldest":1`, fileVersion+5):                 true,
		fmt.Sprintf(`"version":%d`, fileVersion+1):                            false,
		fmt.Sprintf(`"version":%d,"oldest":%d`, fileVersion+2, fileVersion+1): false,
		fmt.Sprintf(`"version":%d,"oldest":-1`, fileVersion+1):                false,
		fmt.Sprintf(`"version":0,"oldest":%d`, fileVersion):                   false,
	} {
		s, err := decode([]byte(fmt.Sprintf(`{%s,"sha256":"%s","state":%s}`, head, hex.EncodeToString(sum[:]), body)))
		switch {
		case readable && (err != nil || len(s.Allocations) != 1 || s.Allocations[0].Pod.UID != "u"):
			t.Errorf("%s: %+v, %v", head, s, err)
		case !readable && (err == nil || !strings.Contains(err.Error(), "version")):
			t.Errorf("%s: read, or refused for another reason: %v", head, err)
		}
	}
}
