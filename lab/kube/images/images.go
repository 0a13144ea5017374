package images

import (
	_ "embed"
	"fmt"
	"path/filepath"

	"github.com/branchline-cni/branchline/build/image"
)

// The names of the images, as manifests use them.
const (
	Pause   = "localhost/branchline/pause:lab"
	CoreDNS = "localhost/branchline/coredns:lab"
	App     = "localhost/branchline/welcome:lab"
)

// PauseSpec is the sandbox image of an executable of lab/kube/pause.
func PauseSpec(executable string) image.Spec {
	return image.Spec{
		Name: Pause, Entrypoint: []string{"/pause"}, User: "65535:65535",
		Files: []image.File{{Path: "/pause", From: executable}},
	}
}

// CoreDNSSpec is the image of an executable of lab/kube/coredns.
func CoreDNSSpec(executable string) image.Spec {
	return image.Spec{
		Name: CoreDNS, Entrypoint: []string{"/coredns"},
		Files: []image.File{{Path: "/coredns", From: executable}},
	}
}

// readWelcome is what the application's container runs.
//
//go:embed read-welcome.sh
var readWelcome []byte

// psqlPath is the client itself; usr/bin/psql of the package is a script that chooses a version.
const psqlPath = "usr/lib/postgresql/15/bin/psql"

// AppPackages are the Debian packages, without further dependencies, that AppSpec takes its files from.
func AppPackages() []string {
	return []string{
		"busybox-static", "postgresql-client-15", "libpq5", "libreadline8", "libtinfo6", "libssl3", "libc6",
		"libgssapi-krb5-2", "libkrb5-3", "libk5crypto3", "libkrb5support0", "libcom-err2", "libkeyutils1",
		"libldap-2.5-0", "libsasl2-2", "libgnutls30", "libp11-kit0", "libidn2-0", "libunistring2", "libtasn1-6",
		"libnettle8", "libhogweed6", "libgmp10", "libffi8",
	}
}

// AppSpec is the walk-through's application: PostgreSQL's own client in a loop, with what shows why it fails (a
// resolver and a TCP client). root is a folder with the unpacked files of AppPackages.
func AppSpec(root string) (image.Spec, error) {
	files, err := programFiles(root, psqlPath, "/usr/bin/psql")
	if err != nil {
		return image.Spec{}, fmt.Errorf("collect psql for image %s: %w", App, err)
	}
	busybox, err := resolve(root, "bin/busybox")
	if err != nil {
		return image.Spec{}, fmt.Errorf("collect busybox for image %s: %w", App, err)
	}
	files = append(files,
		image.File{Path: "/bin/busybox", From: busybox},
		image.File{Path: "/bin/read-welcome", Content: readWelcome},
		image.File{Path: "/etc/passwd", Content: []byte("root:x:0:0:root:/:/bin/sh\napp:x:1000:1000:app:/:/bin/sh\n"), Mode: 0o644},
	)
	for _, applet := range []string{"sh", "cat", "date", "ip", "ls", "nc", "nslookup", "ping", "sleep", "timeout", "true"} {
		files = append(files, image.File{Path: filepath.Join("/bin", applet), Link: "busybox"})
	}
	return image.Spec{
		Name: App, Entrypoint: []string{"/bin/read-welcome"}, User: "1000:1000",
		Env:   []string{"PATH=/usr/bin:/bin", "HOME=/"},
		Files: files,
	}, nil
}
