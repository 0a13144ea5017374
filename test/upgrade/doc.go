// Package upgrade holds what the previous release has left behind on nodes and in the API server, and what it says and
// understands, and shows that this one gets along with it: plugin and agent may be one release apart in either direction, and
// an update may be taken back.
//
// testdata/previous is the previous release's: the descriptors of its messages and each message as bytes (wire), its file of
// allocations, its CNI configuration, its CRDs; plugins/eni/testdata has the results of its ADDs. Until there is a release, it is
// the commit that these tests came with. At each release, once it is tagged, they are renewed in its checkout:
//
//	go run ./test/upgrade/record
//	go test ./plugins/eni -run PreviousRelease -record
//
// and committed for the next one. A test that fails says what a node of the release before would not understand: what changed
// is to be added beside the old then, not put in its place.
package upgrade
