// Package artifacts is the cache of the things that the lab runs and that we
// neither ship nor keep in the repository: Kubernetes, CoreDNS and containerd 2,
// built from their Go modules; a kernel with 802.1Q, containerd 1.6, PostgreSQL and the like,
// unpacked from Debian packages; our own programs as the lab starts them.
//
// Each entry is named by a hash of its inputs, is built in a temporary folder
// under a lock and appears by a rename, so that it is complete whenever it can
// be seen, whoever asks at the same time and however a build ended. Nothing is
// installed: Debian packages are downloaded and unpacked into the cache.
//
// The package installs nothing on the machine, starts no service and knows
// nothing of the lab's topology. What must be installed is lab/artifacts/host's.
package artifacts
