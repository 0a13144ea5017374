// Package images says what is in the lab's container images: the sandbox, CoreDNS and the walk-through's application.
// All are made of files on this machine, for build/image to write; nothing is fetched from a registry. Branchline's own
// image is not among them: the product's build makes it.
package images
