package enginetest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// peerPackage is the program in every image.
const peerPackage = "github.com/vethwall/vethwall/internal/enginetest/peer"

// layer is a tar archive with /peer in it, built once for all tests of a package.
var layer = sync.OnceValues(func() ([]byte, error) {
	content, err := build(peerPackage)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err = w.WriteHeader(&tar.Header{Name: "peer", Mode: 0o755, Size: int64(len(content))})
	_, writeErr := w.Write(content)
	return buf.Bytes(), errors.Join(err, writeErr, w.Close())
})

// build makes a static program of a package, with further flags for go build, and returns it.
func build(pkg string, flags ...string) ([]byte, error) {
	dir, err := os.MkdirTemp("", Prefix)
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bin := filepath.Join(dir, "program")
	args := slices.Concat([]string{"build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", bin}, flags, []string{pkg})
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	return os.ReadFile(bin)
}

// Image makes an image with the program peer for its entry point and returns its name. It is removed
// when the test ends.
func (d *Docker) Image() string {
	d.t.Helper()
	return d.ImageWithLabels(nil)
}

// ImageWithLabels is Image with LABELs in it. Values must be of one line.
func (d *Docker) ImageWithLabels(labels map[string]string) string {
	d.t.Helper()
	tarball, err := layer()
	if err != nil {
		d.t.Fatal(err)
	}
	name := d.prefix + "image:" + random()
	args := []string{"import", "--change", `ENTRYPOINT ["/peer"]`, "--change", `CMD ["sleep"]`}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		args = append(args, "--change", "LABEL "+quote(key)+"="+quote(labels[key]))
	}
	if _, err := d.try(tarball, append(args, "-", name)...); err != nil {
		d.t.Fatal(err)
	}
	d.cleanup("image", "rm", "--force", name)
	return name
}

// quote writes a word so that a Dockerfile instruction means it literally.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`).Replace(s) + `"`
}
