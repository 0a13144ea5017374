package aws

// The images are built FROM scratch and hold no certificates: Mozilla's root CAs are in the executables, and are used
// only where the system has none (crypto/x509.SetFallbackRoots).
import _ "golang.org/x/crypto/x509roots/fallback"
