// Package product says what Branchline ships: which executables, how they are
// built, how large they may be, what they must not link, and which images they
// go into. It is what scripts/build, scripts/image and scripts/check share; no
// program that ships imports it.
package product
